-- Writers go on meanwhile, and nobody waits for it, so it may wait for others.
set lock_timeout = 0;

-- What an attempt that was killed left behind.
drop index concurrently if exists recalld.message_by_given_id;

create unique index concurrently message_by_given_id on recalld.message (session_key, message_id)
    where id_derived is not true;

set lock_timeout = '2s';

alter table recalld.message drop constraint if exists message_session_key_message_id_key;
