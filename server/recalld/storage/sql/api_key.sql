-- name: find
select key_id, digest, namespace, scopes, name, create_time, expire_time, revoke_time
  from recalld.api_key
 where key_id = %(key_id)s

-- name: list
select key_id, digest, namespace, scopes, name, create_time, expire_time, revoke_time
  from recalld.api_key
 where namespace = %(namespace)s or %(namespace)s::text is null
 order by create_time, key_id

-- name: add
insert into recalld.api_key (key_id, digest, namespace, scopes, name, create_time, expire_time)
values (%(key_id)s, %(digest)s, %(namespace)s, %(scopes)s, %(name)s, %(now)s, %(expire_time)s)

-- name: lifetime
select expire_time - create_time
  from recalld.api_key
 where key_id = %(key_id)s

-- name: expire
-- Only ever makes it earlier.
update recalld.api_key
   set expire_time = least(expire_time, %(expire_time)s)
 where key_id = %(key_id)s and revoke_time is null
returning namespace, scopes, name, expire_time

-- name: revoke
update recalld.api_key
   set revoke_time = coalesce(revoke_time, %(now)s)
 where key_id = %(key_id)s
returning revoke_time
