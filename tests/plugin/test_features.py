import copy
import pickle

import pytest

from lerobot_ext.features import VectorFeature


def test_it_is_a_shape_with_names():
    feature = VectorFeature(["skin.m0_x", "skin.m0_y"])
    assert feature == (2,)
    assert feature.names == ["skin.m0_x", "skin.m0_y"]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_copies_keep_the_names(clone):
    feature = clone(VectorFeature(["a", "b", "c"]))
    assert type(feature) is VectorFeature and feature == (3,) and feature.names == ["a", "b", "c"]


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_names_are_needed_and_unique(names):
    with pytest.raises(ValueError, match="at least one name and no name twice"):
        VectorFeature(names)
