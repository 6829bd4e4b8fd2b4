-- name: columns
s.session_id, s.user_id, s.metadata, s.message_count, s.last_seq, s.create_time, s.update_time, s.delete_time, s.version

-- name: create
insert into recalld.session as s (session_key, namespace, session_id, user_id, metadata, message_count, last_seq,
                                  cleared_seq, version, create_time, update_time, active_time)
values (%(session_key)s, %(namespace)s, %(session_id)s, nullif(%(user_id)s, ''), %(metadata)s::jsonb, 0, 0,
        0, 1, %(time)s, %(time)s, %(minute)s)
on conflict (session_key) do update
   set user_id = excluded.user_id,
       metadata = excluded.metadata,
       version = s.version + 1,
       create_time = excluded.create_time,
       update_time = excluded.update_time,
       active_time = excluded.active_time,
       delete_time = null
 where s.delete_time is not null
returning {columns}

-- name: get
select {columns}
  from recalld.session as s
 where s.session_key = %(session_key)s

-- name: update
update recalld.session as s
   set metadata = case when %(metadata)s::jsonb is null then s.metadata
                       when %(replace)s then %(metadata)s::jsonb
                       else recalld.merge_patch(s.metadata, %(metadata)s::jsonb) end,
       user_id = case when %(user_id)s::text is null then s.user_id else nullif(%(user_id)s, '') end,
       version = s.version + 1,
       update_time = greatest(s.update_time, %(time)s),
       active_time = greatest(s.active_time, %(minute)s)
 where s.session_key = %(session_key)s
   and s.delete_time is null
   and (%(version)s::bigint is null or (s.version, s.create_time) = (%(version)s, %(version_time)s))
returning {columns}

-- name: delete
-- The watermark moves to last_seq, however many messages are below it; the tombstone records what to purge.
with old as (
    select s.session_key, s.cleared_seq
      from recalld.session as s
     where s.session_key = %(session_key)s
       and s.delete_time is null
       and (%(version)s::bigint is null or (s.version, s.create_time) = (%(version)s, %(version_time)s))
       for update
), s as (
    update recalld.session as s
       set delete_time = %(time)s,
           update_time = greatest(s.update_time, %(time)s),
           active_time = greatest(s.active_time, %(minute)s),
           message_count = 0,
           cleared_seq = s.last_seq,
           version = s.version + 1
      from old
     where s.session_key = %(session_key)s
       and s.session_key = old.session_key
    returning s.*, old.cleared_seq as old_cleared_seq
), tombstone as (
    insert into recalld.tombstone as t (session_key, last_seq, delete_time, first_seq, namespace, whole)
    select s.session_key, s.last_seq, %(time)s, s.old_cleared_seq + 1, s.namespace, true
      from s
    on conflict (session_key, last_seq, delete_time) do update
       set first_seq = least(t.first_seq, excluded.first_seq), whole = t.whole or excluded.whole
)
select {columns}
  from s

-- name: clear
with old as (
    select s.session_key, s.cleared_seq
      from recalld.session as s
     where s.session_key = %(session_key)s
       and s.delete_time is null
       for update
), s as (
    update recalld.session as s
       set update_time = greatest(s.update_time, %(time)s),
           active_time = greatest(s.active_time, %(minute)s),
           message_count = 0,
           cleared_seq = s.last_seq
      from old
     where s.session_key = %(session_key)s
       and s.session_key = old.session_key
    returning s.*, old.cleared_seq as old_cleared_seq
), tombstone as (
    insert into recalld.tombstone as t (session_key, last_seq, delete_time, first_seq, namespace, whole)
    select s.session_key, s.last_seq, %(time)s, s.old_cleared_seq + 1, s.namespace, false
      from s
     where s.last_seq > s.old_cleared_seq
    on conflict (session_key, last_seq, delete_time) do update
       set first_seq = least(t.first_seq, excluded.first_seq), whole = t.whole or excluded.whole
)
select {columns}
  from s

-- name: undelete
-- Only while the session still belongs to the user whose row the caller has locked.
update recalld.session as s
   set delete_time = null,
       version = s.version + 1,
       update_time = greatest(s.update_time, %(time)s),
       active_time = greatest(s.active_time, %(minute)s)
 where s.session_key = %(session_key)s
   and s.delete_time is not null
   and s.user_id is not distinct from nullif(%(user_id)s, '')
returning {columns}

-- name: lock_session
-- Keeps the session as it is until the transaction ends, if it still belongs to this user; tells whether it is live.
select s.delete_time is null
  from recalld.session as s
 where s.session_key = %(session_key)s
   and s.user_id is not distinct from nullif(%(user_id)s, '')
   for update

-- name: lock_user
-- Keeps the user live until the transaction ends; taken before the session's row, here as in deleting a user.
select
  from recalld.app_user as u
 where u.user_key = %(user_key)s
   and u.delete_time is null
   for share

-- name: live_of_user
-- Not `exists`, for which Citus would fetch them all.
select true
  from recalld.session as s
 where s.namespace = %(namespace)s
   and s.user_id = %(user_id)s
   and not s.deleted
 limit 1

-- name: delete_of_user
-- To be repeated while there are live sessions: one whose watermark moves meanwhile is passed over, since only its old
-- watermark would be known here. A range from there would overlap that of another tombstone, and a dry run would count
-- messages twice.
with s as (
    update recalld.session as s
       set delete_time = %(time)s,
           update_time = greatest(s.update_time, %(time)s),
           active_time = greatest(s.active_time, %(minute)s),
           message_count = 0,
           cleared_seq = s.last_seq,
           version = s.version + 1
      from recalld.session as old
     where s.namespace = %(namespace)s
       and s.user_id = %(user_id)s
       and not s.deleted
       and old.session_key = s.session_key
       and old.cleared_seq = s.cleared_seq
    returning s.session_key, s.last_seq, s.namespace, old.cleared_seq as old_cleared_seq
)
insert into recalld.tombstone as t (session_key, last_seq, delete_time, first_seq, namespace, whole)
select s.session_key, s.last_seq, %(time)s, s.old_cleared_seq + 1, s.namespace, true
  from s
on conflict (session_key, last_seq, delete_time) do update
   set first_seq = least(t.first_seq, excluded.first_seq), whole = t.whole or excluded.whole

-- name: list
-- Examines a bounded number of rows from the position on. Returns those that match, as long as they fit, and in any case the
-- last one examined, where the next page begins. {place} is the indexed time, to which the bounds apply.
select {columns}, s.place, s.session_key, s.matches, s.fits, s.examined
  from (select s.*, row_number() over before as place_in_page, count(*) over () as examined,
               coalesce(sum(octet_length(s.metadata::text)) filter (where s.matches) over before, 0) < %(max_bytes)s as fits
          from (select page.*, {place} as place,
                       (%(metadata)s::jsonb is null or page.metadata @> %(metadata)s::jsonb)
                       and (%(create_from)s::timestamptz is null or page.create_time >= %(create_from)s)
                       and (%(create_to)s::timestamptz is null or page.create_time < %(create_to)s)
                       and (%(update_from)s::timestamptz is null or page.update_time >= %(update_from)s)
                       and (%(update_to)s::timestamptz is null or page.update_time < %(update_to)s) as matches
                  from ({pages}) as page) as s
        window before as (order by s.place {direction}, s.session_key {direction}
                          rows between unbounded preceding and 1 preceding)) as s
 where s.matches and s.fits
    or s.place_in_page = s.examined
 order by s.place {direction}, s.session_key {direction}

-- name: list_page
-- One condition gives the start: the position, or else the bound of the range. With a second condition on the time alone,
-- Postgres would start the index scan at that bound and read all entries up to the position.
select *
  from recalld.session as p
 where p.namespace = %(namespace)s
   and p.deleted = {deleted}
   and {of_user}
   and p.{place} {within} coalesce({last}::timestamptz, {end})
   and (p.{place}, p.session_key) {beyond} (coalesce(%(after_time)s::timestamptz, {first}::timestamptz, {start}),
                                         coalesce(%(after_key)s::uuid, {start_key}))
 order by p.{place} {direction}, p.session_key {direction}
 limit %(examine)s

-- name: list_both
select *
  from (({live}) union all ({deleted})) as p
 order by p.{place} {direction}, p.session_key {direction}
 limit %(examine)s

-- name: of_user
p.user_id = %(user_id)s

-- name: of_anybody
true
