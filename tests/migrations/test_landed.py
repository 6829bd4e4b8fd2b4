"""A migration that has landed is never edited: databases that have it would not get what is changed in it."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files

# A new step is added here when it lands.
LANDED = {
    "0001_initial.sql": "07028d15eff45543df7a9279c8617eef024bc87af7e701bf261a31be7e103f12",
    "0002_api_key.sql": "d354961af0a6ffa11c00692dffb1edbe284d6e529b14748325a5296176f90532",
    "0003_lease.sql": "2bf0992f162b048643092b2c7bc3e377a8fa9516f4e5c37f33b47082c0481143",
    "0004_group_append.sql": "4c9c5b15495fd07ea4a53ab21acfdd3622fffe4247d880e3116ebd9926a2f52e",
    "0005_given_ids.sql": "40791f180ccf1f4a06cafc919ac26f7742844779546d12ee219754e7282ab75d",
    "0006_search.sql": "2a7765752ac61e035fff7396f6b257887ccdc0a762cca1201094a39f5671cf6e",
    "0007_group_plan.sql": "4bdd68c9e44eea301fe69cdbe61231cc1c75084c022ed40545f558f5ab87f14e",
    "0008_group_update.sql": "1c4107a420f8f3b6be8eb5dbe8abb81b3f37296ab23fd81cf3aaf8861df09793",
    "0009_search_terms.sql": "0421983bd0bdad07b99da6d98b9ed05d976424bcb2d9afd826563b0ec187017d",
    "0010_group_creation.sql": "267385e8572c2fe42f180fd2ab4d271a900f2f4a95224f840500bfe76ad1864a",
    "0011_namespace_hash.sql": "4883b5178269d0959541ada7bf145947afa4282523f1508ba0603fa439f843e4",
    "0012_search_index.sql": "1364c03ad46250275279b8facab1a61548bbc1246268f32d9634e029d95480a0",
    "0013_search_namespace.sql": "dd39eaab7b8f3ba1c4161e648ba6510630dfd7bae7914e1e5377ff9ccb7a57d1",
    "0014_merge_patch.sql": "f2fd74fa572f0de60d502e01bf67576b93cee1cde5ec8f48760b1327490ce535",
}


def test_no_migration_that_has_landed_is_edited() -> None:
    versions = files("recalld.storage") / "migrations" / "versions"
    steps = [step for step in versions.iterdir() if step.name.endswith(".sql")]
    assert {step.name: sha256(step.read_bytes()).hexdigest() for step in steps} == LANDED
