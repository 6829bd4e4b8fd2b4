-- As before, but the index is asked for the messages of one namespace, and so those of others are not read. What is read of
-- other users of the same namespace, and of what is deleted, is bounded too.
create or replace function recalld.rare_messages(
    p_namespace  text,
    p_user_id    text,
    p_sessions   uuid[], -- the sessions in scope, those active last first
    p_named      boolean, -- whether these are all
    p_messages   bigint, -- how many messages they have
    p_terms      text[],
    p_limit      bigint,
    out complete text[],
    out keys     uuid[],
    out seqs     bigint[]
) language plpgsql stable as $$
declare
    c_sample constant bigint := 200;
    c_paired constant bigint := 8;
    c_single constant bigint := 128;
    v_only   constant uuid := case when p_named and cardinality(p_sessions) = 1 then p_sessions[1] end;
    v_terms  text[];
    v_query  tsquery;
    v_keys   uuid[];
    v_seqs   bigint[];
    v_left   bigint := p_limit;
    v_reads  bigint := 4 * p_limit; -- what may be counted, be it taken or not
    -- What may be read besides: of other users, or deleted and not purged yet. Each query gets half of what is left, so
    -- that a word which others say all the time leaves something for a rare one.
    v_passes bigint := 16 * p_limit;
    v_hash   constant integer := recalld.namespace_hash(p_namespace);
    v_most   bigint; -- rows that a query may read
    v_read   bigint; -- and those that it did
begin
    complete := '{}';
    keys := '{}';
    seqs := '{}';
    -- For a term that is frequent in a sample the index is not asked: it would go through all of its places. For the
    -- others the matches are counted: what a sample says may be off by much where the talk has changed.
    for v_terms in
        with seen as materialized (
            select term, coalesce(sample.messages, 0)::float8 as messages
              from unnest(p_terms) as term
              left join (select lexeme as term, count(*) as messages
                           from recalld.newest_messages(p_sessions, c_sample), unnest(tsvector_to_array(document)) as lexeme
                          where lexeme = any(p_terms)
                          group by lexeme) as sample using (term)
        ), paired as materialized (
            select term, messages from seen order by messages, term limit c_paired
        ), asked as (
            (select array[term] as terms, messages from seen order by messages, term limit c_single)
             union all
            select array[a.term, b.term], a.messages * b.messages / c_sample
              from paired as a
              join paired as b on a.term < b.term
        )
        select terms
          from asked
         where messages * p_messages / c_sample <= 2 * p_limit
         order by cardinality(terms), messages, terms
    loop
        exit when v_reads <= 0;
        continue when cardinality(v_terms) = 2 and v_terms && complete;
        v_query := recalld.any_of(v_terms[1:1]);
        if cardinality(v_terms) = 2 then
            v_query := v_query && recalld.any_of(v_terms[2:2]);
        end if;
        -- Materialized, which is done row by row, so that the planner sees neither a limit nor the join: for either it may
        -- take averages over all sessions, and go through a long one.
        v_most := v_left + 1 + v_passes / 2;
        with ours as materialized (
            select m.session_key, m.seq
              from recalld.message as m
             where array[coalesce(m.namespace_hash, -1)] && array[v_hash]
               and recalld.searchable(m.role, m.content) @@ v_query
               and (not p_named or m.session_key = any(p_sessions))
               and m.delete_time is null
        ), former as materialized (
            select m.session_key, m.seq
              from recalld.message as m
             where array[coalesce(m.namespace_hash, -1)] && array[-1] -- from before 0011, of any namespace
               and recalld.searchable(m.role, m.content) @@ v_query
               and (not p_named or m.session_key = any(p_sessions))
               and m.delete_time is null
        ), read as materialized (
            (select session_key, seq, row_number() over () as number from ours limit v_most)
             union all
            select session_key, seq, null from former
        )
        select coalesce(array_agg(m.session_key), '{}'), coalesce(array_agg(m.seq), '{}'),
               case when count(*) > v_left then coalesce(max(m.number), 0) else (select count(number) from read) end
          into v_keys, v_seqs, v_read
          from (select read.session_key, read.seq, read.number
                  from read
                  join recalld.session as s
                    on s.session_key = read.session_key
                   and s.cleared_seq < read.seq
                 where s.namespace = p_namespace
                   and (p_user_id is null or s.user_id = p_user_id)
                   and not s.deleted
                   and (v_only is null or s.session_key = v_only)
                 limit v_left + 1) as m;
        v_reads := v_reads - cardinality(v_seqs);
        v_passes := greatest(0, v_passes - greatest(0, v_read - cardinality(v_seqs)));
        if v_read < v_most and cardinality(v_seqs) <= v_left then
            v_left := v_left - cardinality(v_seqs);
            if cardinality(v_terms) = 1 then
                complete := complete || v_terms;
            end if;
            keys := keys || v_keys;
            seqs := seqs || v_seqs;
        end if;
    end loop;
end
$$;


-- It takes the place of the former index, name and all: by that a former `recalld migrate` knows it.
drop index recalld.message_by_text;


alter index recalld.message_by_namespace_and_text rename to message_by_text;
