-- name: take
-- By the database's clock: those of the servers may differ.
insert into recalld.lease (name, holder, expire_time, next_time)
values (%(name)s, %(holder)s, clock_timestamp() + %(ttl)s, clock_timestamp())
on conflict (name) do update
   set holder = excluded.holder, expire_time = excluded.expire_time
 where lease.expire_time <= clock_timestamp() and lease.next_time <= clock_timestamp()
returning true

-- name: renew
update recalld.lease
   set expire_time = clock_timestamp() + %(ttl)s
 where name = %(name)s and holder = %(holder)s and expire_time > clock_timestamp()
returning true

-- name: give_back
update recalld.lease
   set expire_time = clock_timestamp(), next_time = clock_timestamp() + %(pause)s
 where name = %(name)s and holder = %(holder)s and expire_time > clock_timestamp()
