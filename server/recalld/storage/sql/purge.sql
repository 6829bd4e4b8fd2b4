-- name: pick
-- Takes no lock: each step checks again. The last column: whether the session is still deleted as of this tombstone while
-- other tombstones of it are left.
select t.session_key, t.last_seq, t.delete_time, t.first_seq, t.whole,
       t.whole and exists (select
                             from recalld.session as s
                             join recalld.tombstone as other on other.session_key = s.session_key
                            where s.session_key = t.session_key
                              and {only}
                              and s.delete_time = t.delete_time
                              and s.last_seq = t.last_seq
                              and other.last_seq <= t.last_seq
                              and (other.last_seq <> t.last_seq or other.delete_time <> t.delete_time))
  from recalld.tombstone as t
 where t.namespace = %(namespace)s
   and t.delete_time <= %(cutoff)s
   and {scope}
   and (t.delete_time, t.session_key, t.last_seq)
       > (coalesce(%(after_time)s::timestamptz, '-infinity'),
          coalesce(%(after_key)s::uuid, '00000000-0000-0000-0000-000000000000'),
          %(after_seq)s::bigint)
 order by t.delete_time, t.session_key, t.last_seq
 limit 1000

-- name: remove_batch
-- Removes the first messages of a tombstone's range, and records in the tombstone how far it came. In the statement's
-- snapshot the tombstone exists, so every message that it sees in the range is a deleted one, whoever else purges or writes.
-- The commit does not wait for the disk: if the database crashes, this batch is repeated. The commit that removes the
-- tombstone does wait, for all batches before it too. The range begins where the tombstone says, not where the caller
-- has come to: a crash of the database may have undone its last batches.
with old as (
    select t.first_seq
      from recalld.tombstone as t
     where t.session_key = %(session_key)s
       and t.last_seq = %(last_seq)s
       and t.delete_time = %(delete_time)s
       for update
), t as (
    update recalld.tombstone as t
       set first_seq = greatest(old.first_seq, %(next_seq)s)
      from old
     where t.session_key = %(session_key)s
       and t.last_seq = %(last_seq)s
       and t.delete_time = %(delete_time)s
), m as (
    delete from recalld.message as m
     where m.session_key = %(session_key)s
       and m.seq >= (select old.first_seq from old)
       and m.seq < %(next_seq)s
    returning 1
)
select 0, (select count(*) from m), set_config('synchronous_commit', 'off', true)

-- name: remove_last
-- The rest of a tombstone's range, and the tombstone.
with t as (
    delete from recalld.tombstone as t
     where t.session_key = %(session_key)s
       and t.last_seq = %(last_seq)s
       and t.delete_time = %(delete_time)s
    returning t.first_seq
), m as (
    delete from recalld.message as m
     where m.session_key = %(session_key)s
       and m.seq >= (select t.first_seq from t)
       and m.seq <= %(last_seq)s
    returning 1
)
select 0, (select count(*) from m)

-- name: remove_session
-- A deleted session with all that is left of it, if it is still deleted as of the tombstone. If a write revives it
-- concurrently, Postgres checks the conditions again on the changed row: a live session stays, and nothing is removed.
-- The counts make the parts run in this order: a tombstone is always locked before its messages.
with s as (
    delete from recalld.session as s
     where s.session_key = %(session_key)s
       and s.delete_time = %(delete_time)s
       and s.last_seq = %(last_seq)s
    returning s.session_key
), t as (
    delete from recalld.tombstone as t
     where t.session_key = %(session_key)s
       and t.last_seq <= %(last_seq)s
       and (select count(*) from s) > 0
    returning t.session_key
), m as (
    delete from recalld.message as m
     where m.session_key = %(session_key)s
       and m.seq <= %(last_seq)s
       and (select count(*) from s) > 0
       and (select count(*) from t) >= 0
    returning 1
)
select (select count(*) from s), (select count(*) from m)

-- name: count_batch
-- What the steps above would remove. A message that was deleted singly counts with its own tombstone, a session with the
-- last batch of the tombstone of its deletion.
select (select count(*)
          from recalld.session as s
         where s.session_key = %(session_key)s
           and s.delete_time = %(delete_time)s
           and s.last_seq = %(last_seq)s
           and %(next_seq)s > %(last_seq)s),
       (select count(*)
          from recalld.message as m
         where m.session_key = %(session_key)s
           and m.seq >= %(first_seq)s
           and m.seq < %(next_seq)s
           and m.seq <= %(last_seq)s
           and (m.delete_time is null or m.delete_time = %(delete_time)s))

-- name: remove_users
-- Removes, among the next deleted users, those that have no session left and were not undeleted since. Returns the last user
-- examined, and how many were examined and removed. Users and sessions are on different shards, so they are read one
-- after the other.
with picked as materialized (
    select u.user_key, u.user_id, u.delete_time
      from recalld.app_user as u
     where u.namespace = %(namespace)s
       and u.delete_time <= %(cutoff)s
       and {scope}
       and (u.delete_time, u.user_key) > (coalesce(%(after_time)s::timestamptz, '-infinity'),
                                          coalesce(%(after_key)s::uuid, '00000000-0000-0000-0000-000000000000'))
     order by u.delete_time, u.user_key
     limit %(batch_size)s
), kept as materialized (
    select distinct s.user_id
      from recalld.session as s
     where s.namespace = %(namespace)s
       and s.user_id in (select user_id from picked)
), gone as (
    delete from recalld.app_user as u
     using picked
     where u.user_key = picked.user_key
       and u.delete_time = picked.delete_time
       and picked.user_id not in (select user_id from kept)
    returning u.user_key
)
select picked.delete_time, picked.user_key, count(*) over (), (select count(*) from gone)
  from picked
 order by picked.delete_time desc, picked.user_key desc
 limit 1

-- name: count_users
with picked as materialized (
    select u.user_id
      from recalld.app_user as u
     where u.namespace = %(namespace)s
       and u.delete_time <= %(cutoff)s
       and {scope}
), kept as materialized (
    select distinct s.user_id
      from recalld.session as s
     where s.namespace = %(namespace)s
       and s.user_id in (select user_id from picked)
       and (s.delete_time is null or s.delete_time > %(cutoff)s)
)
select count(*)
  from picked
 where user_id not in (select user_id from kept)

-- name: of_session
t.session_key = %(session_key)s

-- name: of_user
t.session_key in (select s.session_key
                       from recalld.session as s
                      where s.namespace = %(namespace)s
                        and s.user_id = %(user_id)s)

-- name: below
-- The other tombstones of a session that is still deleted as of this one: they are older, whatever their times say.
t.session_key = %(session_key)s
   and t.last_seq <= %(last_seq)s
   and (t.last_seq <> %(last_seq)s or t.delete_time <> %(delete_time)s)
   and exists (select
                 from recalld.session as s
                where s.session_key = %(session_key)s
                  and s.delete_time = %(delete_time)s
                  and s.last_seq = %(last_seq)s)

-- name: only_session
s.session_key = %(session_key)s
                              and other.session_key = %(session_key)s

-- name: this_user
u.user_key = %(user_key)s

-- name: all
true

-- name: due_namespaces
select t.namespace from recalld.tombstone as t where t.delete_time <= %(cutoff)s
union
select u.namespace from recalld.app_user as u where u.delete_time <= %(cutoff)s
