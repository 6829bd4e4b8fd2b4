-- A message whose caller gave no id has one that its place tells: it is found by the primary key, and costs no index
-- entry of its own. The ids of callers, and those of servers that knew no better, are null here and indexed (see 0005).
alter table recalld.message add column id_derived boolean;

comment on column recalld.message.id_derived is 'true: message_id is recalld.message_id(session_key, seq); else null';


-- A UUID of version 8 (RFC 9562): 48 bits of seq, then 72 of the session's key.
create function recalld.message_id(session_key uuid, seq bigint) returns uuid
    language sql immutable parallel safe
    return (lpad(to_hex(seq), 12, '0') || '8' || substr(session_key::text, 1, 3)
            || '8' || translate(substr(session_key::text, 4, 18), '-', ''))::uuid;


-- As before, but nothing is searched for in a message that is too short to have it, as most are.
create or replace function recalld.searchable(role text, content text) returns tsvector
    language sql immutable parallel safe
    return to_tsvector(recalld.search_language(),
                       case when octet_length(role) + octet_length(content) < 255
                                 and strpos(role, '<') = 0 and strpos(content, '<') = 0
                            then role || ' ' || content
                            else regexp_replace(translate(left(role || ' ' || content, 65536), '<', ' '),
                                                '(\S{255})(?=\S)', '\1 ', 'g') end);


-- Appends to a session that is live, or creates it when p_create is set; all in one round trip, and on Citus on one shard,
-- where it must be called alone and with nothing but bind parameters. The session's row lock makes seq dense and in commit
-- order. A message without an id gets one. Returns null, having changed nothing, when the session is deleted, must not be
-- created, or has another last_seq than p_expected_last_seq: the caller then looks closer. Raises unique_violation when a
-- message id is taken.
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
                                     metadata, id_derived)
        values (p_session_key, v_last, p_time, p_token_counts[1], outcome,
                coalesce(p_message_ids[1], recalld.message_id(p_session_key, v_last)), p_roles[1], p_contents[1],
                p_metadatas[1], nullif(p_message_ids[1] is null, false));
    else
        -- On Citus, within a transaction, a plain `insert … select` would go by way of the coordinator, and a duplicate
        -- would end it with another SQLSTATE. As part of a query it stays on its shard.
        with stored as (
            insert into recalld.message (session_key, seq, create_time, token_count, outcome, message_id, role, content,
                                         metadata, id_derived)
            select p_session_key, v_last - v_count + new.place, p_time, new.token_count,
                   case when new.place = 1 then outcome end,
                   coalesce(new.message_id, recalld.message_id(p_session_key, v_last - v_count + new.place)),
                   new.role, new.content, new.metadata, nullif(new.message_id is null, false)
              from unnest(p_message_ids, p_roles, p_contents, p_metadatas, p_token_counts)
                   with ordinality as new (message_id, role, content, metadata, token_count, place)
            returning 1
        )
        select count(*) into v_stored from stored;
    end if;
    last_seq := v_last;
end
$$;


-- The same for several sessions, and any number of calls to each, in one transaction. Sessions come in the order of their
-- keys, each once, with how many messages it gets; messages come with the place of their session among these, and their
-- own place among that session's new ones. Returns for each session what `append` returns.
--
-- Without p_wait it waits for no session that somebody has locked: one must not hold up the others, nor they their locks
-- while they wait, which could end in a deadlock. Such a session's last_seq comes back as 0, and nothing is appended to it.
create function recalld.append_group(
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
) language plpgsql as $$
declare
    v_number constant integer := cardinality(p_session_keys);
    v_minute constant timestamptz := date_bin('1 minute', p_time, 'epoch');
    v_free   uuid[] := p_session_keys;
    v_last   bigint;
begin
    last_seqs := array_fill(null::bigint, array[v_number]);
    outcomes := array_fill(null::smallint, array[v_number]);
    if not p_wait then
        v_free := array(select s.session_key
                          from recalld.session as s
                         where s.session_key = any(p_session_keys)
                           for no key update skip locked);
    end if;

    for i in 1 .. v_number loop
        v_last := null;
        if p_session_keys[i] = any(v_free) then
            update recalld.session as s
               set last_seq = s.last_seq + p_counts[i],
                   message_count = s.message_count + p_counts[i],
                   update_time = greatest(s.update_time, p_time),
                   active_time = greatest(s.active_time, v_minute)
             where s.session_key = p_session_keys[i]
               and s.delete_time is null
            returning s.last_seq into v_last;
        elsif exists (select from recalld.session as s where s.session_key = p_session_keys[i]) then
            v_last := 0;
        end if;
        if v_last is null and p_creates[i] then
            insert into recalld.session as s (session_key, namespace, session_id, metadata, message_count, last_seq,
                                              cleared_seq, version, create_time, update_time, active_time)
            values (p_session_keys[i], p_namespaces[i], p_session_ids[i], p_metadatas[i], p_counts[i], p_counts[i],
                    0, 1, p_time, p_time, v_minute)
            on conflict (session_key) do nothing
            returning s.last_seq into v_last;
            outcomes[i] := case when found then 1 end;
        end if;
        last_seqs[i] := v_last;
    end loop;

    insert into recalld.message (session_key, seq, create_time, token_count, outcome, message_id, role, content, metadata,
                                 id_derived)
    select placed.session_key, placed.seq, p_time, placed.token_count, placed.outcome,
           coalesce(placed.message_id, recalld.message_id(placed.session_key, placed.seq)),
           placed.role, placed.content, placed.metadata, nullif(placed.message_id is null, false)
      from (select p_session_keys[new.session] as session_key,
                   last_seqs[new.session] - p_counts[new.session] + new.place as seq,
                   case when new.place = 1 then outcomes[new.session] end as outcome,
                   new.*
              from unnest(p_sessions, p_places, p_message_ids, p_roles, p_contents, p_message_metadatas, p_token_counts)
                   as new (session, place, message_id, role, content, metadata, token_count)
             where last_seqs[new.session] > 0) as placed;
end
$$;
