"""Combinations are offered where all their rows are, and ask for what those ask for."""

from vivace.accel.published import published
from vivace.accel.variant import Variant

ROWS = {
    name: Variant(name, name, ((kind, options),))
    for name, kind, options in (
        ("mlp", "mlp_prune", {"sparsity": 0.4}),
        ("layers", "layer_skip", {"n_dropped": 3}),
        ("tokens", "patch_select", {"k_final": 6}),
        ("cache", "block_cache", {"updates": 2}),
    )
}


def test_combinations_join_what_their_rows_ask_for():
    found = {row.name: row for row in published(ROWS)}
    assert list(found) == ["layers+mlp", "layers+mlp+cache", "tokens+cache", "all", "all-compile", "all+eora"]
    assert found["layers+mlp"].wanted == (ROWS["mlp"].wanted[0], ROWS["layers"].wanted[0])
    assert dict(found["all+eora"].wanted) == {
        "mlp_prune": {"rank": 16},
        "layer_skip": {"n_dropped": 3},
        "patch_select": {"k_final": 6},
        "block_cache": {"updates": 2},
    }
    assert found["all-compile"].is_compiled


def test_what_lacks_a_row_is_not_offered():
    assert not list(published({}))
    assert [row.name for row in published({name: ROWS[name] for name in ("mlp", "layers")})] == ["layers+mlp"]
