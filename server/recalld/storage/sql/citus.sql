-- name: extension
select extversion from pg_catalog.pg_extension where extname = 'citus'

-- name: is_coordinator
select pg_catalog.citus_is_coordinator()

-- name: is_distributed
select exists (select
                 from pg_catalog.pg_dist_partition as p
                where p.logicalrelid = to_regclass('recalld.session')
                  and p.partmethod = 'h')

-- name: sequential
-- One connection to each node: required in a transaction that changes a table and then a function that uses it. Without
-- Citus nothing reads the setting.
select set_config('citus.multi_shard_modify_mode', 'sequential', false)

-- name: plan
-- All rows of a session are on one shard. Tables without a key are small, and copied to every node.
(values (1, 'recalld.session', 'session_key', 'none'),
        (2, 'recalld.message', 'session_key', 'recalld.session'),
        (3, 'recalld.tombstone', 'session_key', 'recalld.session'),
        (4, 'recalld.app_user', 'user_key', 'none'),
        (5, 'recalld.api_key', null, null),
        (6, 'recalld.lease', null, null),
        (7, 'recalld.alembic_version', null, null)) as t (place, relation, key, colocate_with)

-- name: tables
select t.*
  from {plan}
 where not exists (select
                     from pg_catalog.pg_dist_partition as p
                    where p.logicalrelid = t.relation::regclass)
 order by t.place
offset 0

-- name: functions
-- The functions that are not distributed yet. A function whose first argument is the session's key runs on its shard.
select 'recalld.' || p.proname as name, p.oid::regprocedure as signature, k.has_key
  from pg_catalog.pg_proc as p
 cross join lateral (select coalesce(p.proargnames[1] = 'p_session_key', false)) as k (has_key)
 where p.pronamespace = 'recalld'::regnamespace
   and not exists (select
                     from pg_catalog.pg_dist_object as o
                    where o.classid = 'pg_catalog.pg_proc'::regclass
                      and o.objid = p.oid
                      and (o.distribution_argument_index is not null or not k.has_key))
 order by p.proname
offset 0

-- name: is_complete
select not exists ({tables}) and not exists ({functions})

-- name: distribute_tables
select t.relation,
       case when t.key is null then create_reference_table(t.relation::regclass)
            else create_distributed_table(t.relation::regclass, t.key, colocate_with => t.colocate_with) end
  from ({tables}) as t

-- name: distribute_functions
select f.name,
       case when f.has_key
            then create_distributed_function(f.signature, 'p_session_key', colocate_with => 'recalld.session')
            else create_distributed_function(f.signature) end
  from ({functions}) as f

-- name: drop_local_copies
-- The rows from before a table was distributed: they were copied to the shards, and still take space here, unseen.
select truncate_local_data_after_distributing_table(t.relation::regclass)
  from {plan}
 where pg_relation_size(t.relation::regclass) > 0
