-- Who does what only one server at a time may do. A holder that dies loses its lease when that expires.
create table recalld.lease (
    name text primary key,
    holder uuid not null,
    expire_time timestamptz not null,
    -- Not before this is it anybody's turn again.
    next_time timestamptz not null
);

-- The oldest schema whose servers can work on this one. A step that breaks older servers replaces it, and they stop.
create function recalld.oldest_server() returns text language sql immutable parallel safe
    return '0001';
