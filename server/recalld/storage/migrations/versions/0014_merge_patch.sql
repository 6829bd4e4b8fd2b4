-- A merge patch (RFC 7396) in one pass. Before, each name in the patch copied the whole document: of the largest metadata
-- that a request may carry, thousands of names, a merge took seconds, and kept the row locked.
create or replace function recalld.merge_patch(target jsonb, patch jsonb) returns jsonb
    language plpgsql immutable parallel safe as $$
begin
    if jsonb_typeof(patch) is distinct from 'object' then
        return patch;
    end if;
    if jsonb_typeof(target) is distinct from 'object' then
        target := '{}';
    end if;
    return (
        select coalesce(jsonb_object_agg(merged.name, merged.value), '{}')
          from (select kept.key as name, kept.value
                  from jsonb_each(target) as kept
                 where not patch ? kept.key
                 union all
                select changed.key, recalld.merge_patch(target -> changed.key, changed.value)
                  from jsonb_each(patch) as changed
                 where jsonb_typeof(changed.value) <> 'null') as merged);
end
$$;
