-- Sessions, messages, users, and the tombstones of what is deleted.
--
-- Keys are derived by the server from (namespace, caller's id): no look-up, no address into another namespace's rows, and
-- one column to shard by. No foreign keys: every writer of messages holds the session's row lock, every writer of a
-- session's user_id holds the user's, and the checks would cost each append a second lock.

create table recalld.session (
    session_key   uuid        primary key,
    namespace     text        not null collate "C",
    session_id    text        not null collate "C",
    user_id       text        collate "C",
    metadata      jsonb       not null,
    message_count bigint      not null,
    last_seq      bigint      not null,
    cleared_seq   bigint      not null,
    version       bigint      not null,
    create_time   timestamptz not null,
    update_time   timestamptz not null,
    active_time   timestamptz not null,
    delete_time   timestamptz,
    deleted       boolean     not null generated always as (delete_time is not null) stored,
    -- Reads rely on it: of the seqs above the watermark, message_count are live.
    constraint session_counts check (message_count between 0 and last_seq - cleared_seq)
) with (fillfactor = 80);

comment on table recalld.session is 'One conversation; the row lock of its row orders everything that happens to it.';
comment on column recalld.session.user_id is 'null: belongs to nobody';
comment on column recalld.session.message_count is 'live messages';
comment on column recalld.session.last_seq is 'the newest seq ever assigned';
comment on column recalld.session.cleared_seq is 'the watermark: every message with seq <= cleared_seq is deleted';
comment on column recalld.session.version is 'with create_time, the etag; appends do not change it';
comment on column recalld.session.active_time is
    'update_time cut to the minute: an index on the exact time would make every append a non-HOT update';

create index session_by_create_time on recalld.session (namespace, deleted, create_time, session_key);
create index session_by_active_time on recalld.session (namespace, deleted, active_time, session_key);
create index session_of_user_by_create_time on recalld.session (namespace, user_id, deleted, create_time, session_key)
    where user_id is not null;
create index session_of_user_by_active_time on recalld.session (namespace, user_id, deleted, active_time, session_key)
    where user_id is not null;

create table recalld.message (
    session_key   uuid        not null,
    seq           bigint      not null,
    create_time   timestamptz not null,
    update_time   timestamptz,
    delete_time   timestamptz,
    token_count   integer,
    outcome       smallint,
    message_id    uuid        not null,
    role          text        not null,
    content       text        not null,
    metadata      jsonb,
    sent_digest   bytea,
    primary key (session_key, seq),
    unique (session_key, message_id)
);

comment on table recalld.message is 'One turn; live while seq > session.cleared_seq and delete_time is null.';
comment on column recalld.message.update_time is 'null: never updated';
comment on column recalld.message.delete_time is 'deleted on its own, by DeleteMessage';
comment on column recalld.message.token_count is 'null: not counted';
comment on column recalld.message.outcome is
    'what the call did whose first message this is (1: created the session, 2: undeleted it), to repeat its answer';
comment on column recalld.message.metadata is 'null: empty';
comment on column recalld.message.sent_digest is
    'message_digest of the message as first sent, from the first update on: a repeated AddMemory is known by it';

create table recalld.app_user (
    user_key      uuid        primary key,
    namespace     text        not null collate "C",
    user_id       text        not null collate "C",
    email         text        not null,
    first_name    text        not null,
    last_name     text        not null,
    metadata      jsonb       not null,
    version       bigint      not null,
    create_time   timestamptz not null,
    update_time   timestamptz not null,
    delete_time   timestamptz,
    deleted       boolean     not null generated always as (delete_time is not null) stored
);

create index app_user_by_create_time on recalld.app_user (namespace, deleted, create_time, user_key);
create index app_user_by_delete_time on recalld.app_user (namespace, delete_time) where delete_time is not null;

create table recalld.tombstone (
    session_key   uuid        not null,
    last_seq      bigint      not null,
    delete_time   timestamptz not null,
    first_seq     bigint      not null,
    namespace     text        not null collate "C",
    whole         boolean     not null,
    primary key (session_key, last_seq, delete_time)
);

comment on table recalld.tombstone is
    'Messages first_seq to last_seq of a session were deleted then: what purging has left to do. Written whenever a '
    'watermark moves or a message is deleted, under the session''s row lock; a deleted session has at least one. '
    'A watermark alone would forget when the earlier messages were deleted, and a session that is cleared more often '
    'than the retention would never be purged.';

comment on column recalld.tombstone.whole is 'the session was deleted, not only messages of it';

create index tombstone_by_delete_time on recalld.tombstone (namespace, delete_time, session_key, last_seq);


-- The keys as the server derives them, for psql:
-- select * from recalld.message where session_key = recalld.session_key('default', 'demo').
create function recalld.derived_key(kind text, namespace text, identifier text) returns uuid
    language sql immutable parallel safe
    return encode(substring(sha256(convert_to(kind, 'UTF8') || '\x00' || convert_to(namespace, 'UTF8') || '\x00'
                                   || convert_to(identifier, 'UTF8')) for 16), 'hex')::uuid;

create function recalld.session_key(namespace text, session_id text) returns uuid
    language sql immutable parallel safe
    return recalld.derived_key('session', namespace, session_id);

create function recalld.user_key(namespace text, user_id text) returns uuid
    language sql immutable parallel safe
    return recalld.derived_key('user', namespace, user_id);


-- JSON Merge Patch, RFC 7396 section 2.
create function recalld.merge_patch(target jsonb, patch jsonb) returns jsonb
    language plpgsql immutable parallel safe as $$
declare
    name  text;
    value jsonb;
begin
    if jsonb_typeof(patch) is distinct from 'object' then
        return patch;
    end if;
    if jsonb_typeof(target) is distinct from 'object' then
        target := '{}';
    end if;
    for name, value in select * from jsonb_each(patch) loop
        if jsonb_typeof(value) = 'null' then
            target := target - name;
        else
            target := target || jsonb_build_object(name, recalld.merge_patch(target -> name, value));
        end if;
    end loop;
    return target;
end
$$;


-- What a message was sent as, for telling a repeated call from a conflicting one.
create function recalld.message_digest(role text, content text, metadata jsonb, token_count integer) returns bytea
    language sql immutable parallel safe
    return sha256(convert_to(jsonb_build_array(role, content, metadata, token_count)::text, 'UTF8'));


-- Appends to a session that is live, or creates it when p_create is set; all in one round trip, and on Citus on one shard,
-- where it must be called alone and with nothing but bind parameters. The session's row lock makes seq dense and in commit
-- order. Returns null, having changed nothing, when the session is deleted, must not be created, or has another last_seq
-- than p_expected_last_seq: the caller then looks closer. Raises unique_violation when a message id is taken.
create function recalld.append(
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

    insert into recalld.message (session_key, seq, create_time, token_count, outcome, message_id, role, content, metadata)
    select p_session_key, v_last - v_count + new.place, p_time, new.token_count,
           case when new.place = 1 then outcome end, new.message_id, new.role, new.content, new.metadata
      from unnest(p_message_ids, p_roles, p_contents, p_metadatas, p_token_counts)
           with ordinality as new (message_id, role, content, metadata, token_count, place);
    last_seq := v_last;
end
$$;


-- Full-text search. The one place that holds the language, which `recalld migrate` may change.
create function recalld.search_language() returns regconfig
    language sql immutable parallel safe
    return 'pg_catalog.english'::regconfig;

-- No message may fail to be stored for want of a place in the index. A tsvector holds at most 1 MiB: 65,536 characters
-- stay below that whatever they are. And the parser takes time that grows with the square of a run without white space,
-- which is cut after 255 characters, and of what might become an HTML tag or comment, which is kept from starting.
create function recalld.searchable(role text, content text) returns tsvector
    language sql immutable parallel safe
    return to_tsvector(recalld.search_language(),
                       regexp_replace(translate(left(role || ' ' || content, 65536), '<', ' '),
                                      '(\S{255})(?=\S)', '\1 ', 'g'));

create index message_by_text on recalld.message using gin (recalld.searchable(role, content));
