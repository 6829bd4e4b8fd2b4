-- All times are of the database's clock: those of servers may differ. now() is when the statement began, even if it then
-- waited for a lock: so it can take a lease for held that has just ended, but never for free that is held.

-- name: take
insert into recalld.lease (name, holder, expire_time, next_time)
values (%(name)s, %(holder)s, now() + %(ttl)s, now())
on conflict (name) do update
   set holder = excluded.holder, expire_time = excluded.expire_time
 where lease.expire_time <= excluded.next_time and lease.next_time <= excluded.next_time

-- name: renew
update recalld.lease
   set expire_time = now() + %(ttl)s
 where name = %(name)s and holder = %(holder)s and expire_time > now()

-- name: give_back
update recalld.lease
   set expire_time = now(), next_time = now() + %(pause)s
 where name = %(name)s and holder = %(holder)s and expire_time > now()
