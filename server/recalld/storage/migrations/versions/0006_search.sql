-- A query for any of the terms, each taken as it is.
create function recalld.any_of(terms text[]) returns tsquery
    language sql immutable parallel safe
    return (select string_agg('''' || replace(replace(term, '\', '\\'), '''', '''''') || '''', ' | ')
              from unnest(terms) as term)::tsquery;


-- The newest live messages of sessions, p_limit at most, with their documents: of the session active last its newest, then
-- those of the one before it, and so on. Of the keys, which come in that order, more than p_limit are not looked at.
--
-- Where there is only one session, here and below, its key is compared though the join implies it: Citus then asks only the
-- shard that has it.
create function recalld.newest_messages(p_session_keys uuid[], p_limit bigint)
    returns table (session_key uuid, seq bigint, document tsvector)
    language plpgsql stable as $$
#variable_conflict use_column
declare
    v_only constant uuid := case when cardinality(p_session_keys) = 1 then p_session_keys[1] end;
begin
    return query
    with sessions as materialized (
        select s.session_key, s.cleared_seq, s.message_count,
               (sum(s.message_count) over (order by s.active_time desc, s.session_key desc
                                           rows unbounded preceding))::bigint - s.message_count as newer
          from recalld.session as s
         where s.session_key = any(p_session_keys[1:p_limit])
    )
    select m.session_key, m.seq, recalld.searchable(m.role, m.content)
      from (select m.session_key, m.seq, m.role, m.content
              from sessions as s
              join recalld.message as m
                on m.session_key = s.session_key
               and m.seq > s.cleared_seq + greatest(0, s.message_count - (p_limit - s.newer))
               and m.delete_time is null
               and (v_only is null or m.session_key = v_only)
             where s.newer < p_limit
             order by s.newer, m.seq desc
             limit p_limit) as m;
end
$$;


-- The live messages of some sessions that have a rare one of the terms: term by term, the rarest first, as long as together
-- they have not more than p_limit matches. Those terms are complete: every match of theirs is there. What room is left goes
-- to pairs of the other terms, likewise: what has two of them mostly ranks before what has one.
--
-- Which they are depends on the messages in scope and on nothing else: not on what other namespaces hold.
create function recalld.rare_messages(
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
    v_only   constant uuid := case when p_named and cardinality(p_sessions) = 1 then p_sessions[1] end;
    v_terms  text[];
    v_query  tsquery;
    v_keys   uuid[];
    v_seqs   bigint[];
    v_left   bigint := p_limit;
    v_reads  bigint := 4 * p_limit; -- what may be counted, be it taken or not
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
            select array[term] as terms, messages from seen
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
        -- Materialized, which is done row by row, so that the planner sees neither the limit nor the join: for either it
        -- may take averages over all sessions, and go through a long one.
        with matching as materialized (
            select m.session_key, m.seq
              from recalld.message as m
             where recalld.searchable(m.role, m.content) @@ v_query
               and (not p_named or m.session_key = any(p_sessions))
               and m.delete_time is null
        )
        select coalesce(array_agg(m.session_key), '{}'), coalesce(array_agg(m.seq), '{}')
          into v_keys, v_seqs
          from (select m.session_key, m.seq
                  from matching as m
                  join recalld.session as s
                    on s.session_key = m.session_key
                   and s.cleared_seq < m.seq
                 where s.namespace = p_namespace
                   and (p_user_id is null or s.user_id = p_user_id)
                   and not s.deleted
                   and (v_only is null or s.session_key = v_only)
                 limit v_left + 1) as m;
        v_reads := v_reads - cardinality(v_seqs);
        if cardinality(v_seqs) <= v_left then
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


-- The best matches of a query among the live messages of a session, of a user's sessions, or of a namespace.
--
-- To make a message's document costs a hundred times what reading its row does. So what bounds a search is how many it
-- makes, whatever is asked for and however much there is:
-- * Where there are at most p_newest messages, all are looked at, and no index is asked.
-- * Elsewhere the full-text index finds the messages that have rare terms of the query, or two others, at most p_rare.
-- * When that leaves terms over, the newest p_newest messages are looked at too.
--
-- A message counts the rarity of each term that it has among all that match (the idf of BM25), and a quarter of what the
-- messages right before and after it count: in a conversation the answer often stands next to the words of the question.
-- The weights were chosen by recall on real conversations.
create function recalld.best_messages(
    p_namespace     text,
    p_session_key   uuid, -- null: any
    p_user_id       text, -- null: any
    p_query         text,
    p_roles         text[],
    p_metadata      jsonb,
    p_create_from   timestamptz,
    p_create_to     timestamptz,
    p_limit         bigint,
    p_newest        bigint,
    p_rare          bigint,
    p_most_sessions bigint -- as many are looked at in order of activity to tell how large the namespace is
) returns table (session_key uuid, seq bigint, score float8)
    language plpgsql stable as $$
#variable_conflict use_column
declare
    c_named     constant bigint := 1000;
    v_terms     constant text[] := tsvector_to_array(recalld.searchable('', p_query));
    v_any_term  constant tsquery := recalld.any_of(v_terms);
    v_sessions  uuid[];
    v_named     boolean;
    v_messages  bigint;
    v_complete  text[] := '{}';
    -- What is looked at, place by place, and the document where it is made already.
    v_keys      uuid[] := '{}';
    v_seqs      bigint[] := '{}';
    v_documents tsvector[] := '{}';
    -- How many messages there are for each of the newest.
    v_scale     float8 := 1;
begin
    select array_agg(s.session_key), count(*) <= c_named and count(*) < p_most_sessions, sum(s.message_count)
      into v_sessions, v_named, v_messages
      from (select s.session_key, s.message_count
              from recalld.session as s
             where s.namespace = p_namespace
               and not s.deleted
               and (p_session_key is null or s.session_key = p_session_key)
               and (p_user_id is null or s.user_id = p_user_id)
             order by s.active_time desc, s.session_key desc
             limit p_most_sessions) as s;
    if v_terms = '{}' or v_sessions is null then
        return;
    end if;

    if not v_named or v_messages > p_newest then
        select complete, keys, seqs
          into v_complete, v_keys, v_seqs
          from recalld.rare_messages(p_namespace, p_user_id, v_sessions, v_named, v_messages, v_terms, p_rare);
    end if;

    if cardinality(v_complete) < cardinality(v_terms) then
        select coalesce(array_agg(session_key) filter (where document @@ v_any_term), '{}') || v_keys,
               coalesce(array_agg(seq) filter (where document @@ v_any_term), '{}') || v_seqs,
               coalesce(array_agg(document) filter (where document @@ v_any_term), '{}'),
               greatest(1, v_messages / greatest(1, count(*))::float8)
          into v_keys, v_seqs, v_documents, v_scale
          from recalld.newest_messages(v_sessions, p_newest);
    end if;

    return query
    with looked_at as (
        -- Of a place that is there twice, the one whose document is made.
        select distinct on (session_key, seq) session_key, seq, document
          from unnest(v_keys, v_seqs, v_documents) as place (session_key, seq, document)
         order by session_key, seq, document is null
    ), found as materialized (
        select m.session_key, m.seq, m.create_time, m.newest,
               array(select lexeme from unnest(tsvector_to_array(m.document)) as lexeme
                      where lexeme = any(v_terms)) as terms
          from (select m.session_key, m.seq, m.create_time, looked_at.document is not null as newest,
                       coalesce(looked_at.document, recalld.searchable(m.role, m.content)) as document
                  from looked_at
                  join recalld.message as m
                    on m.session_key = looked_at.session_key
                   and m.seq = looked_at.seq
                   and (p_session_key is null or m.session_key = p_session_key)
                 where (p_roles is null or m.role = any(p_roles))
                   and (p_metadata is null or coalesce(m.metadata, '{}') @> p_metadata)
                   and (p_create_from is null or m.create_time >= p_create_from)
                   and (p_create_to is null or m.create_time < p_create_to)
                offset 0) as m
    ), matching as (
        select greatest(count(*), v_scale * count(*) filter (where newest)) as messages
          from found
    ), having_term as (
        -- Where not all that have a term are looked at, the newest tell how many there may be.
        select term, case when term = any(v_complete) then count(*)
                          else greatest(count(*), v_scale * count(*) filter (where newest)) end as messages
          from found, unnest(found.terms) as term
         group by term
    ), weights as materialized (
        select jsonb_object_agg(having_term.term,
                                ln(1 + (greatest(0, matching.messages - having_term.messages) + 0.5)
                                       / (having_term.messages + 0.5))) as by_term
          from having_term, matching
    ), scored as (
        select found.session_key, found.seq, found.create_time,
               (select sum((weights.by_term -> term)::float8) from unnest(found.terms) as term) as score
          from found, weights
    ), ranked as (
        select session_key, seq, create_time,
               score + 0.25 * (case when lag(seq) over talk = seq - 1 then lag(score) over talk else 0 end
                               + case when lead(seq) over talk = seq + 1 then lead(score) over talk else 0 end) as score
          from scored
        window talk as (partition by session_key order by seq)
    )
    select session_key, seq, score
      from ranked
     order by score desc, create_time desc, session_key, seq desc
     limit p_limit;
end
$$;


-- The best messages, best first, as many as p_max_bytes of content and metadata allow; the first whatever it has.
--
-- The settings are for the planner, which takes documents for cheap, and a scan that makes thousands of them, or reads
-- all sessions, for better than the index.
--
-- On Citus all of it runs on the node that was asked, whose settings do not reach the shards. No statement calls a function
-- that reads tables and reads tables itself: where one shard is enough for it, Citus would send it there, function and all.
create function recalld.search(
    p_namespace     text,
    p_session_key   uuid,
    p_user_id       text,
    p_query         text,
    p_roles         text[],
    p_metadata      jsonb,
    p_create_from   timestamptz,
    p_create_to     timestamptz,
    p_limit         bigint,
    p_newest        bigint,
    p_rare          bigint,
    p_most_sessions bigint,
    p_max_bytes     bigint
) returns table (
    place       bigint,
    session_id  text,
    message_id  uuid,
    seq         bigint,
    role        text,
    content     text,
    metadata    jsonb,
    token_count integer,
    create_time timestamptz,
    update_time timestamptz,
    score       float8
)
    language plpgsql stable rows 100
    set plan_cache_mode = force_custom_plan
    set cpu_operator_cost = 0.05
    set enable_seqscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set max_parallel_workers_per_gather = 0
    set jit = off
as $$
#variable_conflict use_column
declare
    v_keys   uuid[];
    v_seqs   bigint[];
    v_scores float8[];
begin
    select array_agg(best.session_key), array_agg(best.seq), array_agg(best.score)
      into v_keys, v_seqs, v_scores
      from recalld.best_messages(p_namespace, p_session_key, p_user_id, p_query, p_roles, p_metadata, p_create_from,
                                 p_create_to, p_limit, p_newest, p_rare, p_most_sessions) as best;
    return query
    select m.place, m.session_id, m.message_id, m.seq, m.role, m.content, m.metadata, m.token_count, m.create_time,
           m.update_time, m.score
      from (select m.*, s.session_id, best.place, best.score,
                   sum(octet_length(m.content) + coalesce(octet_length(m.metadata::text), 0))
                       over (order by best.place rows between unbounded preceding and 1 preceding) as better_bytes
              from unnest(v_keys, v_seqs, v_scores) with ordinality as best (session_key, seq, score, place)
              join recalld.message as m
                on m.session_key = best.session_key
               and m.seq = best.seq
               and (p_session_key is null or m.session_key = p_session_key)
              join recalld.session as s
                on s.session_key = m.session_key) as m
     where coalesce(m.better_bytes, 0) < p_max_bytes;
end
$$;
