-- Writers go on meanwhile, and nobody waits for it, so it may wait for others.
set lock_timeout = 0;

-- What an attempt that was killed left behind.
drop index concurrently if exists recalld.message_by_namespace_and_text;

create index concurrently message_by_namespace_and_text on recalld.message
    using gin (recalld.indexed(namespace_hash, role, content));

set lock_timeout = '2s';

-- How frequent the words are. Without it the planner takes each for rare until the next autoanalyze.
analyze recalld.message;
