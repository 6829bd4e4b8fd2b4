-- As before, but a group waits only a moment for a session that another transaction has made and not committed: nobody can
-- see that it is locked. The settings of 0007 are said again, for replacing a function forgets them.
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
