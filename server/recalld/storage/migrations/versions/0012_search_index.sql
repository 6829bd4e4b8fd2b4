-- Writers go on meanwhile, and nobody waits for it, so it may wait for others.
set lock_timeout = 0;

-- What an attempt that was killed left behind.
drop index concurrently if exists recalld.message_by_namespace_and_text;

-- The words of a message, and beside them its namespace: only the places that they have in common are read. An array, since
-- GIN takes no number without an extension; -1 for messages of before 0011. By the words alone it finds too, as the release
-- before this looks for them.
create index concurrently message_by_namespace_and_text on recalld.message
    using gin ((array[coalesce(namespace_hash, -1)]), recalld.searchable(role, content));

set lock_timeout = '2s';

-- How frequent the words are. Without it the planner takes each for rare until the next autoanalyze.
analyze recalld.message;
