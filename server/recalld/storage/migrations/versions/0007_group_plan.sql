-- One plan for groups of any size, made once: otherwise every group is planned anew, for the planner knows how many there
-- are in one and takes that for a gain. Whatever the sizes, the index is what finds them; a plan that was made while the
-- tables were new and empty would read them from end to end until the next analyze.
alter function recalld.append_group set plan_cache_mode = force_generic_plan;
alter function recalld.append_group set enable_seqscan = off;
