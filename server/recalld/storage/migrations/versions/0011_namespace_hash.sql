-- A message tells which namespace it is of, so that the full-text index can (0012): a search in one namespace is not to read
-- what others say. It tells so by a small number that several namespaces may share, which takes 2 bytes where the name
-- would take many. Messages of before have none.
alter table recalld.message add column namespace_hash smallint;

comment on column recalld.message.namespace_hash is
    'recalld.namespace_hash(namespace), for the full-text index; null: written before schema 0011';


-- 15 bits of a hash. Not `immutable`, as convert_to is not: Postgres then puts it in place of its calls, which is cheaper.
create function recalld.namespace_hash(namespace text) returns smallint
    language sql stable parallel safe
    return ('x' || encode(sha256(convert_to(namespace, 'UTF8')), 'hex'))::bit(15)::integer::smallint;


-- As before, and each message with its namespace's hash.
create or replace function recalld.append(
    p_session_key       uuid,
    p_namespace         text,
    p_session_id        text,
    p_user_id           text,
    p_metadata          jsonb,
    p_create            boolean,
    p_expected_last_seq bigint,
    p_outcome           smallint,
    p_time              timestamptz,
    p_message_ids       uuid[],
    p_roles             text[],
    p_contents          text[],
    p_metadatas         jsonb[],
    p_token_counts      integer[],
    out last_seq        bigint,
    out outcome         smallint
) language plpgsql as $$
declare
    v_count  constant bigint := cardinality(p_message_ids);
    v_minute constant timestamptz := date_bin('1 minute', p_time, 'epoch');
    v_hash   constant smallint := recalld.namespace_hash(p_namespace);
    v_last   bigint;
    v_stored bigint;
begin
    update recalld.session as s
       set last_seq = s.last_seq + v_count,
           message_count = s.message_count + v_count,
           update_time = greatest(s.update_time, p_time),
           active_time = greatest(s.active_time, v_minute)
     where s.session_key = p_session_key
       and s.delete_time is null
       and (p_expected_last_seq is null or s.last_seq = p_expected_last_seq)
    returning s.last_seq into v_last;

    if found then
        outcome := p_outcome;
    elsif p_create and coalesce(p_expected_last_seq, 0) = 0 then
        insert into recalld.session (session_key, namespace, session_id, user_id, metadata, message_count, last_seq,
                                     cleared_seq, version, create_time, update_time, active_time)
        values (p_session_key, p_namespace, p_session_id, nullif(p_user_id, ''), p_metadata, v_count, v_count,
                0, 1, p_time, p_time, v_minute)
        on conflict (session_key) do nothing;
        if not found then
            return;
        end if;
        v_last := v_count;
        outcome := 1;
    else
        return;
    end if;

    if v_count = 1 then
        insert into recalld.message (session_key, seq, create_time, token_count, outcome, message_id, role, content,
                                     metadata, id_derived, namespace_hash)
        values (p_session_key, v_last, p_time, p_token_counts[1], outcome,
                coalesce(p_message_ids[1], recalld.message_id(p_session_key, v_last)), p_roles[1], p_contents[1],
                p_metadatas[1], nullif(p_message_ids[1] is null, false), v_hash);
    else
        -- On Citus, within a transaction, a plain `insert … select` would go by way of the coordinator, and a duplicate
        -- would end it with another SQLSTATE. As part of a query it stays on its shard.
        with stored as (
            insert into recalld.message (session_key, seq, create_time, token_count, outcome, message_id, role, content,
                                         metadata, id_derived, namespace_hash)
            select p_session_key, v_last - v_count + new.place, p_time, new.token_count,
                   case when new.place = 1 then outcome end,
                   coalesce(new.message_id, recalld.message_id(p_session_key, v_last - v_count + new.place)),
                   new.role, new.content, new.metadata, nullif(new.message_id is null, false), v_hash
              from unnest(p_message_ids, p_roles, p_contents, p_metadatas, p_token_counts)
                   with ordinality as new (message_id, role, content, metadata, token_count, place)
            returning 1
        )
        select count(*) into v_stored from stored;
    end if;
    last_seq := v_last;
end
$$;


-- Likewise. The settings of 0007 are said again, for replacing a function forgets them.
create or replace function recalld.append_group(
    p_session_keys      uuid[],
    p_namespaces        text[],
    p_session_ids       text[],
    p_metadatas         jsonb[],
    p_creates           boolean[],
    p_counts            bigint[],
    p_wait              boolean,
    p_time              timestamptz,
    p_sessions          integer[],
    p_places            integer[],
    p_message_ids       uuid[],
    p_roles             text[],
    p_contents          text[],
    p_message_metadatas jsonb[],
    p_token_counts      integer[],
    out last_seqs       bigint[],
    out outcomes        smallint[]
) language plpgsql set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
    v_number constant integer := cardinality(p_session_keys);
    v_minute constant timestamptz := date_bin('1 minute', p_time, 'epoch');
    v_lock_timeout constant text := current_setting('lock_timeout');
    v_free   uuid[] := p_session_keys;
    v_row    record;
begin
    last_seqs := array_fill(null::bigint, array[v_number]);
    outcomes := array_fill(null::smallint, array[v_number]);
    if not p_wait then
        v_free := array(select s.session_key
                          from recalld.session as s
                         where s.session_key = any(p_session_keys)
                           for no key update skip locked);
    end if;

    -- One update for all: each reads anew what the table checks and computes, which takes longer than writing the row.
    -- And no join: a plan of one that was made while the table was small would be kept as it grows.
    for v_row in
        update recalld.session as s
           set last_seq = s.last_seq + p_counts[array_position(p_session_keys, s.session_key)],
               message_count = s.message_count + p_counts[array_position(p_session_keys, s.session_key)],
               update_time = greatest(s.update_time, p_time),
               active_time = greatest(s.active_time, v_minute)
         where s.session_key = any(v_free)
           and s.delete_time is null
        returning array_position(p_session_keys, s.session_key) as number, s.last_seq
    loop
        last_seqs[v_row.number] := v_row.last_seq;
    end loop;

    for i in 1 .. v_number loop
        continue when last_seqs[i] is not null;
        if p_session_keys[i] <> all(v_free)
           and exists (select from recalld.session as s where s.session_key = p_session_keys[i]) then
            last_seqs[i] := 0;
        elsif p_creates[i] then
            if not p_wait then
                perform set_config('lock_timeout', '100ms', true);
            end if;
            insert into recalld.session (session_key, namespace, session_id, metadata, message_count, last_seq,
                                         cleared_seq, version, create_time, update_time, active_time)
            values (p_session_keys[i], p_namespaces[i], p_session_ids[i], p_metadatas[i], p_counts[i], p_counts[i],
                    0, 1, p_time, p_time, v_minute)
            on conflict (session_key) do nothing;
            if found then
                last_seqs[i] := p_counts[i];
                outcomes[i] := 1;
            end if;
            perform set_config('lock_timeout', v_lock_timeout, true);
        end if;
    end loop;

    insert into recalld.message (session_key, seq, create_time, token_count, outcome, message_id, role, content, metadata,
                                 id_derived, namespace_hash)
    select placed.session_key, placed.seq, p_time, placed.token_count, placed.outcome,
           coalesce(placed.message_id, recalld.message_id(placed.session_key, placed.seq)),
           placed.role, placed.content, placed.metadata, nullif(placed.message_id is null, false), placed.namespace_hash
      from (select p_session_keys[new.session] as session_key,
                   last_seqs[new.session] - p_counts[new.session] + new.place as seq,
                   case when new.place = 1 then outcomes[new.session] end as outcome,
                   recalld.namespace_hash(p_namespaces[new.session]) as namespace_hash,
                   new.*
              from unnest(p_sessions, p_places, p_message_ids, p_roles, p_contents, p_message_metadatas, p_token_counts)
                   as new (session, place, message_id, role, content, metadata, token_count)
             where last_seqs[new.session] > 0) as placed;
end
$$;
