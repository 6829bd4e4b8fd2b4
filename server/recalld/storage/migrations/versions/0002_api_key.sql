-- Credentials of callers. Only `recalld keys` writes here; the server reads.
create table recalld.api_key (
    key_id text primary key,
    -- sha256 of the secret part: with 256 random bits there is nothing to guess, so nothing to slow down.
    digest bytea not null,
    namespace text not null,
    scopes text[] not null,
    name text not null,
    create_time timestamptz not null,
    -- Null: good for ever.
    expire_time timestamptz,
    revoke_time timestamptz
);
