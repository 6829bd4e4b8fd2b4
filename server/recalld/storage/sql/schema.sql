-- name: ping
select current_setting('transaction_read_only')

-- name: create_database
-- With Postgres's own locale, not the system's, to_tsvector takes four fifths of the time.
create database {name} template template0 locale_provider builtin builtin_locale 'C.UTF-8'

-- name: lock_migrations
select pg_try_advisory_lock(hashtextextended('recalld.migrate', 0))

-- name: limit_lock_wait
select set_config('lock_timeout', :milliseconds, false)

-- name: set_lock_timeout
select set_config('lock_timeout', %(milliseconds)s, false)

-- name: create_schema
create schema if not exists recalld

-- name: revision
select version_num from recalld.alembic_version

-- name: oldest_server
select recalld.oldest_server()

-- name: durability
select current_setting('fsync'), current_setting('synchronous_commit')

-- name: max_connections
select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int

-- name: may_create
select has_database_privilege(current_database(), 'create')

-- name: clock
select clock_timestamp()

-- name: search_language
select cfgname, coalesce(obj_description(to_regclass('recalld.message_by_text'), 'pg_class'), '')
  from pg_catalog.pg_ts_config
 where oid = recalld.search_language()

-- name: find_language
select from pg_catalog.pg_ts_config
 where cfgname = %(language)s and cfgnamespace = 'pg_catalog'::regnamespace

-- name: set_search_language
create or replace function recalld.search_language() returns regconfig
    language sql immutable parallel safe
    return ('pg_catalog.' || {language})::regconfig

-- name: any_message
-- Not `exists`: for that Citus would fetch all rows.
select true from recalld.message limit 1

-- name: comment_on_search
comment on index recalld.message_by_text is {text}

-- name: unfinished_indexes
-- What is left of a reindex that was killed.
select c.relname
  from pg_catalog.pg_index as i
  join pg_catalog.pg_class as c on c.oid = i.indexrelid
 where i.indrelid = 'recalld.message'::regclass
   and not i.indisvalid
   and c.relname ~ '^message_by_text_cc(new|old)[0-9]*$'

-- name: drop_index
drop index concurrently if exists {name}

-- name: reindex_search
reindex index concurrently recalld.message_by_text

-- name: grant
grant usage on schema recalld to {role};
grant select, insert, update, delete on recalld.session, recalld.message, recalld.app_user, recalld.tombstone to {role};
grant select, insert, update on recalld.lease to {role};
grant select on recalld.api_key, recalld.alembic_version to {role};
grant execute on all functions in schema recalld to {role}
