-- name: columns
u.user_id, u.email, u.first_name, u.last_name, u.metadata, u.create_time, u.update_time, u.delete_time, u.version

-- name: create
insert into recalld.app_user as u (user_key, namespace, user_id, email, first_name, last_name, metadata, version,
                                   create_time, update_time)
values (%(user_key)s, %(namespace)s, %(user_id)s, %(email)s, %(first_name)s, %(last_name)s, %(metadata)s::jsonb, 1,
        %(time)s, %(time)s)
on conflict (user_key) do update
   set email = excluded.email,
       first_name = excluded.first_name,
       last_name = excluded.last_name,
       metadata = excluded.metadata,
       version = u.version + 1,
       create_time = excluded.create_time,
       update_time = excluded.update_time,
       delete_time = null
 where u.delete_time is not null
returning {columns}

-- name: get
select {columns}
  from recalld.app_user as u
 where u.user_key = %(user_key)s

-- name: update
update recalld.app_user as u
   set email = coalesce(%(email)s, u.email),
       first_name = coalesce(%(first_name)s, u.first_name),
       last_name = coalesce(%(last_name)s, u.last_name),
       metadata = case when %(metadata)s::jsonb is null then u.metadata
                       when %(replace)s then %(metadata)s::jsonb
                       else recalld.merge_patch(u.metadata, %(metadata)s::jsonb) end,
       version = u.version + 1,
       update_time = greatest(u.update_time, %(time)s)
 where u.user_key = %(user_key)s
   and u.delete_time is null
   and (%(version)s::bigint is null or (u.version, u.create_time) = (%(version)s, %(version_time)s))
returning {columns}

-- name: delete
update recalld.app_user as u
   set delete_time = %(time)s,
       update_time = greatest(u.update_time, %(time)s),
       version = u.version + 1
 where u.user_key = %(user_key)s
   and u.delete_time is null
   and (%(version)s::bigint is null or (u.version, u.create_time) = (%(version)s, %(version_time)s))
returning {columns}

-- name: undelete
update recalld.app_user as u
   set delete_time = null,
       update_time = greatest(u.update_time, %(time)s),
       version = u.version + 1
 where u.user_key = %(user_key)s
   and u.delete_time is not null
returning {columns}

-- name: list_page
select *
  from recalld.app_user as p
 where p.namespace = %(namespace)s
   and p.deleted = {deleted}
   and (p.create_time, p.user_key) > (coalesce(%(after_time)s::timestamptz, '-infinity'),
                                      coalesce(%(after_key)s::uuid, '00000000-0000-0000-0000-000000000000'))
 order by p.create_time, p.user_key
 limit %(limit)s

-- name: list_both
({live}) union all ({deleted})

-- name: list
-- Reads one user more than asked for, to see whether more follow, and returns those that fit.
select {columns}, u.user_key, u.read
  from (select u.*, count(*) over () as read,
               coalesce(sum(octet_length(u.metadata::text)) over before, 0) < %(max_bytes)s as fits
          from ({pages}) as u
        window before as (order by u.create_time, u.user_key rows between unbounded preceding and 1 preceding)
         order by u.create_time, u.user_key
         limit %(limit)s) as u
 where u.fits
 order by u.create_time, u.user_key
