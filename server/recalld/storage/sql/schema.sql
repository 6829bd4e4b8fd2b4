-- name: ping
select

-- name: revision
select version_num from recalld.alembic_version

-- name: durability
select current_setting('fsync'), current_setting('synchronous_commit')

-- name: search_language
select cfgname from pg_catalog.pg_ts_config where oid = recalld.search_language()

-- name: find_language
select from pg_catalog.pg_ts_config
 where cfgname = %(language)s and cfgnamespace = 'pg_catalog'::regnamespace

-- name: set_search_language
create or replace function recalld.search_language() returns regconfig
    language sql immutable parallel safe
    return ('pg_catalog.' || {language})::regconfig

-- name: reindex_search
reindex index concurrently recalld.message_by_text
