"""Soft tokens: rows of the vocabulary, trained through the embedding, put before the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.adapters import soft_prompt

BOS, EOS, V = 8, 9, 10


@pytest.fixture
def text_params():
    embedding = jax.random.normal(jax.random.key(0), (V, 4))
    return {
        "text_model": {"embeddings": {"token_embedding": {"embedding": embedding}, "other": {"embedding": embedding}}}
    }


def table(params):
    return params["text_model"]["embeddings"]["token_embedding"]["embedding"]


def test_soft_tokens_start_as_distinct_existing_words(text_params):
    for count in (5, V):
        soft = soft_prompt.init(table(text_params), count, jax.random.key(1))["embedding"]
        same = np.asarray(soft)[:, None] == np.asarray(table(text_params))[None]
        words = {int(word) for word in same.all(axis=-1).argmax(axis=1)}
        assert same.all(axis=-1).sum() == len(words) == count


def test_soft_tokens_can_start_from_given_words(text_params):
    soft = soft_prompt.from_words(table(text_params), jnp.array([3, 3, 1]))
    np.testing.assert_array_equal(soft["embedding"], table(text_params)[np.array([3, 3, 1])])


def test_append_extends_the_vocabulary_and_only_that(text_params):
    soft = soft_prompt.init(table(text_params), 2, jax.random.key(1))
    longer = soft_prompt.append(text_params, soft)
    np.testing.assert_array_equal(table(longer)[:V], table(text_params))
    np.testing.assert_array_equal(table(longer)[V:], soft["embedding"])
    assert longer["text_model"]["embeddings"]["other"]["embedding"].shape == (V, 4)


def test_gradients_reach_each_soft_token_once_for_each_use(text_params):
    soft = soft_prompt.init(table(text_params), 2, jax.random.key(1))
    ids = jnp.array([[BOS, V, V + 1, V + 1, EOS]])
    gradient = jax.grad(lambda soft: jnp.sum(table(soft_prompt.append(text_params, soft))[ids]))(soft)
    np.testing.assert_array_equal(gradient["embedding"], [[1.0] * 4, [2.0] * 4])


@pytest.mark.parametrize("pad", [EOS, 0])
def test_prefix_goes_between_start_and_text_and_the_end_token_stays(pad):
    ids = np.array(
        [
            [BOS, 1, 2, EOS, pad, pad],
            [BOS, 1, 2, 3, EOS, pad],
            [BOS, 1, 2, 3, 4, EOS],
            [BOS, EOS, pad, pad, pad, pad],
        ]
    )
    np.testing.assert_array_equal(
        soft_prompt.prefix_ids(ids, BOS, EOS, 2, V),
        [
            [BOS, V, V + 1, 1, 2, EOS],
            [BOS, V, V + 1, 1, 2, EOS],  # 3 was cut
            [BOS, V, V + 1, 1, 2, EOS],  # 3 and 4 were cut
            [BOS, V, V + 1, EOS, pad, pad],
        ],
    )


def test_what_cannot_be_is_refused(text_params):
    with pytest.raises(ValueError, match="it must be from 1 to 10"):
        soft_prompt.init(table(text_params), 11, jax.random.key(0))
    with pytest.raises(ValueError, match="the soft tokens are 3 wide, the text encoder's token embedding 4"):
        soft_prompt.append(text_params, {"embedding": jnp.zeros((2, 3))})
    with pytest.raises(ValueError, match="these parameters have 0"):
        soft_prompt.append({}, {"embedding": jnp.zeros((2, 3))})
    with pytest.raises(ValueError, match="5 soft tokens do not fit"):
        soft_prompt.prefix_ids(np.array([[BOS, 1, 2, 3, 4, EOS]]), BOS, EOS, 5, V)
    with pytest.raises(ValueError, match="must begin with the start token 8"):
        soft_prompt.prefix_ids(np.array([[1, 2, EOS, EOS]]), BOS, EOS, 1, V)
