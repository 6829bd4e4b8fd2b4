-- name: columns
m.message_id::text, m.seq, m.role, m.content, m.metadata, m.token_count, m.create_time, m.update_time

-- name: append
select a.last_seq, a.outcome
  from recalld.append(%(session_key)s, %(namespace)s, %(session_id)s, %(user_id)s, %(metadata)s::jsonb, %(create)s,
                      %(expected_last_seq)s, %(outcome)s::smallint, %(time)s, %(message_ids)s::uuid[], %(roles)s::text[],
                      %(contents)s::text[], %(metadatas)s::jsonb[], %(token_counts)s::integer[]) as a

-- name: append_group
select g.last_seqs, g.outcomes
  from recalld.append_group(%(session_keys)s::uuid[], %(namespaces)s::text[], %(session_ids)s::text[],
                            %(session_metadatas)s::jsonb[], %(creates)s::boolean[], %(counts)s::bigint[], %(wait)s, %(time)s,
                            %(sessions)s::integer[], %(places)s::integer[], %(message_ids)s::uuid[], %(roles)s::text[],
                            %(contents)s::text[], %(metadatas)s::jsonb[], %(token_counts)s::integer[]) as g

-- name: replayed
-- The messages stored under the ids of a call, and whether each is the same as the call sends. The empty logical message
-- makes this a transaction that writes, whose commit waits until a synchronous standby has all WAL up to here, the first
-- call's too. A row lock would do the same, but `for share` on the session's row, while appends to it fail and succeed,
-- can make Postgres report two updaters where one came after the other (XX000).
select new.place, m.seq, m.create_time, m.outcome,
       coalesce(m.sent_digest, recalld.message_digest(m.role, m.content, m.metadata, m.token_count))
       = recalld.message_digest(new.role, new.content, new.metadata, new.token_count) as same,
       (select pg_logical_emit_message(true, 'recalld', '')) as written
  from unnest(%(message_ids)s::uuid[], %(seqs)s::bigint[], %(roles)s::text[], %(contents)s::text[],
              %(metadatas)s::jsonb[], %(token_counts)s::integer[])
       with ordinality as new (message_id, seq, role, content, metadata, token_count, place)
  join recalld.message as m
    on m.session_key = %(session_key)s
   and {by_id}
 order by new.place

-- name: replayed_by_given_id
m.message_id = new.message_id and m.id_derived is not true

-- name: replayed_by_derived_id
m.seq = new.seq and m.id_derived

-- name: get_memory
-- The session's row and its messages, each with the columns of the other null: one statement, so one snapshot. Running
-- totals grow from the newest message down; the first message that does not fit ends the list. However many messages
-- above the watermark were deleted singly, the newest n live ones lie above cleared_seq + message_count - n: so the
-- range that is read does not grow with the session.
with s as (
    select s.*, {wanted}
     where s.delete_time is null
)
select s.place, {session_columns}, {no_message}, 0
  from s
 union all
select s.place, {no_session}, {columns}, m.bytes
  from s
 cross join lateral (
       select m.*,
              sum(coalesce(m.token_count, (octet_length(m.content) + 3) / 4)) over newest as tokens,
              sum(octet_length(m.content) + coalesce(octet_length(m.metadata::text), 0)) over newest as bytes
         from (select m.*
                 from recalld.message as m
                where m.session_key = {session_key}
                  and m.seq > greatest(s.cleared_seq, s.cleared_seq + s.message_count - s.last_n, s.after_seq)
                  and m.delete_time is null
                order by m.seq desc
                limit least(s.last_n, s.message_count)) as m
       window newest as (order by m.seq desc rows unbounded preceding)) as m
 where (s.max_tokens = 0 or m.tokens <= s.max_tokens)
   and m.bytes - octet_length(m.content) - coalesce(octet_length(m.metadata::text), 0) < %(max_bytes)s

-- name: of_one
1 as place, %(last_n)s as last_n, %(max_tokens)s as max_tokens, %(after_seq)s as after_seq
      from (select * from recalld.session as s where s.session_key = %(session_key)s) as s

-- name: of_several
w.place, w.last_n, w.max_tokens, w.after_seq
      from unnest(%(session_keys)s::uuid[], %(last_ns)s::bigint[], %(max_tokens)s::bigint[], %(after_seqs)s::bigint[])
           with ordinality as w (session_key, last_n, max_tokens, after_seq, place)
      join recalld.session as s
        on s.session_key = w.session_key

-- name: list_messages
-- A live session without messages on this page gives one row with null columns. `followed`: whether another message
-- follows. Of any limit + 1 + dead consecutive seqs, at least limit + 1 are live: that is the range to read.
with s as (
    select s.cleared_seq, s.last_seq, %(limit)s + 1 + s.last_seq - s.cleared_seq - s.message_count as reach
      from recalld.session as s
     where s.session_key = %(session_key)s
       and s.delete_time is null
)
select {columns}, m.followed
  from s
  left join lateral (
       select m.*,
              sum(octet_length(m.content) + coalesce(octet_length(m.metadata::text), 0)) over before as bytes_before,
              lead(m.seq) over before is not null as followed
         from recalld.message as m
        where m.session_key = %(session_key)s
          and {range}
          and m.delete_time is null
       window before as (order by m.seq {direction} rows between unbounded preceding and 1 preceding)
        order by m.seq {direction}
        limit %(limit)s) as m
    on coalesce(m.bytes_before, 0) < %(max_bytes)s
 order by m.seq {direction}

-- name: ascending
m.seq > greatest(s.cleared_seq, %(after_seq)s) and m.seq <= greatest(s.cleared_seq, %(after_seq)s) + s.reach

-- name: descending
m.seq > s.cleared_seq
          and m.seq < least(s.last_seq + 1, %(after_seq)s) and m.seq >= least(s.last_seq + 1, %(after_seq)s) - s.reach

-- name: get_message
select {columns}
  from recalld.message as m
  join recalld.session as s
    on s.session_key = %(session_key)s
   and s.delete_time is null
 where m.session_key = %(session_key)s
   and {by_id}
   and m.seq > s.cleared_seq
   and m.delete_time is null

-- name: by_given_id
m.message_id = %(message_id)s and m.id_derived is not true

-- name: by_derived_id
m.seq = %(seq)s and m.id_derived

-- name: update_message
-- The session's row is locked first, as everywhere; the caller rolls back when no message is returned.
with s as (
    update recalld.session as s
       set update_time = greatest(s.update_time, %(time)s),
           active_time = greatest(s.active_time, %(minute)s)
     where s.session_key = %(session_key)s
       and s.delete_time is null
    returning s.cleared_seq
)
update recalld.message as m
   set content = coalesce(%(content)s, m.content),
       role = coalesce(%(role)s, m.role),
       token_count = case when %(token_count)s::bigint is null then m.token_count
                          else nullif(%(token_count)s::bigint, 0)::integer end,
       metadata = case when %(metadata)s::jsonb is null then m.metadata
                       when %(replace)s then nullif(%(metadata)s::jsonb, '{{}}')
                       else nullif(recalld.merge_patch(m.metadata, %(metadata)s::jsonb), '{{}}') end,
       update_time = greatest(m.create_time, m.update_time, %(time)s),
       sent_digest = coalesce(m.sent_digest, recalld.message_digest(m.role, m.content, m.metadata, m.token_count))
  from s
 where m.session_key = %(session_key)s
   and {by_id}
   and m.seq > s.cleared_seq
   and m.delete_time is null
returning {columns}

-- name: delete_message
with s as (
    select s.cleared_seq, s.namespace
      from recalld.session as s
     where s.session_key = %(session_key)s
       and s.delete_time is null
       for update
), m as (
    update recalld.message as m
       set delete_time = %(time)s
      from s
     where m.session_key = %(session_key)s
       and {by_id}
       and m.seq > s.cleared_seq
       and m.delete_time is null
    returning m.*, s.namespace
), counted as (
    update recalld.session as s
       set update_time = greatest(s.update_time, %(time)s),
           active_time = greatest(s.active_time, %(minute)s),
           message_count = s.message_count - 1
      from m
     where s.session_key = %(session_key)s
), tombstone as (
    insert into recalld.tombstone as t (session_key, last_seq, delete_time, first_seq, namespace, whole)
    select m.session_key, m.seq, %(time)s, m.seq, m.namespace, false
      from m
    on conflict (session_key, last_seq, delete_time) do update
       set first_seq = least(t.first_seq, excluded.first_seq), whole = t.whole or excluded.whole
)
select {columns}
  from m

-- name: search
select m.session_id, {columns}, m.score
  from recalld.search(%(namespace)s, %(session_key)s, %(user_id)s, %(query)s, %(roles)s, %(metadata)s, %(create_from)s,
                      %(create_to)s, %(limit)s, %(newest)s, %(rare)s, %(most_sessions)s, %(max_bytes)s) as m
 order by m.place
