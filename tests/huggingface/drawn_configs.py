"""Random configs of every family, as plain fields that transformers takes."""

from hypothesis import strategies as st

from tests.huggingface.drawn_fields import (
    CHUNKED,
    FULL,
    ROUTED,
    SLIDING,
    Config,
    Draw,
    common,
    experts,
    factors,
    flags,
    sizes,
    some,
    thetas,
    windows,
)


@st.composite
def families(draw: Draw, model_type: str) -> Config:
    """What one family has besides the common fields."""
    n = draw(st.integers(1, 12))
    base = draw(common(n))
    types = st.lists(st.sampled_from([FULL, SLIDING]), min_size=n, max_size=n)
    extra: dict[str, st.SearchStrategy[Config]] = {
        "llama": some(attention_bias=flags, mlp_bias=flags),
        "mistral": some(sliding_window=windows),
        "mixtral": experts("num_local_experts").flatmap(lambda e: some(sliding_window=windows).map(lambda w: e | w)),
        "qwen2": _windows(types),
        "qwen3": _windows(types),
        "qwen3_moe": experts().flatmap(lambda e: _qwen_moe(n).map(lambda more: e | more)),
        "gemma2": some(
            layer_types=types,
            sliding_window=st.integers(1, 4096),
            attention_bias=flags,
            query_pre_attn_scalar=st.integers(1, 1024),
            attn_logit_softcapping=st.none() | factors,
            final_logit_softcapping=st.none() | factors,
        ),
        "deepseek_v3": _deepseek(n),
        "gpt_oss": experts("num_local_experts").flatmap(lambda e: _gpt_oss(types).map(lambda more: e | more)),
        "minimax_m2": experts("num_local_experts"),
        "olmo2": some(attention_bias=flags),
        "olmoe": experts().flatmap(lambda e: some(norm_topk_prob=flags, attention_bias=flags).map(lambda m: e | m)),
        "qwen2_moe": experts().flatmap(lambda e: _qwen2_moe(n).map(lambda more: e | more)),
        "glm4_moe": _glm4_moe(n),
        "qwen3_next": experts().flatmap(lambda e: _delta(n, _qwen2_moe(n)).map(lambda more: {**e, **more})),
        "qwen3_5_text": _delta(n, st.just({})),
        "qwen3_5_moe_text": experts().flatmap(lambda e: _delta(n, _shared()).map(lambda more: {**e, **more})),
        "gemma3_text": _gemma3(types),
        "deepseek_v2": _deepseek_v2(n),
        "phi3": some(  # whose config turns every other scaling into longrope
            sliding_window=windows,
            rope_parameters=thetas.map(lambda theta: {"rope_type": "default", "rope_theta": theta}),
        ),
        "llama4_text": _llama4(n),
        "nemotron_h": _nemotron_h(n),
        "mimo_v2_flash": _mimo(n, types),
        "gemma4_text": _gemma4(base, types),
        "deepseek_v32": _indexed(n),
        "glm_moe_dsa": _indexed(n),
        "deepseek_v4": _compressed(n),
        "kimi_linear": _kimi_linear(n),
        "smollm3": _smollm3(types, n),
    }
    return _fitted(model_type, base, draw(extra[model_type]))


def _fitted(model_type: str, base: Config, own: Config) -> Config:
    """Both together, without what a family's config does not take."""
    if model_type in ("deepseek_v32", "glm_moe_dsa"):  # no null, and no other layout
        del own["rope_interleave"]
        own |= {"num_key_value_heads": base["num_attention_heads"], "head_dim": own["qk_rope_head_dim"]}
    if model_type == "deepseek_v4":
        _fit_compressed(base, own)
    if model_type == "kimi_linear":  # which turns and ties nothing
        del base["rope_parameters"], base["head_dim"], own["head_dim"]
        base["tie_word_embeddings"] = False
    if model_type == "mimo_v2_flash":  # whose windows have twice as many
        base["num_attention_heads"] = 2 * base["num_attention_heads"]
    if model_type == "nemotron_h":  # which turns nothing
        base["layer_norm_epsilon"] = base.pop("rms_norm_eps")
        del base["rope_parameters"]
    return {**base, **own}


def _mimo(n: int, types: st.SearchStrategy[list[str]]) -> st.SearchStrategy[Config]:
    turned = some(partial_rotary_factor=st.just(0.5), rope_type=st.just("default"), rope_theta=thetas)
    own = some(
        layer_types=types,
        mlp_layer_types=st.lists(st.sampled_from(["dense", "sparse"]), min_size=n, max_size=n),
        v_head_dim=sizes,
        attention_value_scale=st.none() | st.sampled_from([0.5, 0.707]),
        attention_bias=flags,
        sliding_window=st.integers(1, 4096),
        moe_intermediate_size=sizes,
        norm_topk_prob=flags,
        routed_scaling_factor=factors,
        rope_parameters=some(full_attention=turned, sliding_attention=turned),
    )
    return st.tuples(experts("n_routed_experts"), own).map(lambda parts: {**parts[0], **parts[1]})


def _indexed(n: int) -> st.SearchStrategy[Config]:
    heads = st.integers(1, 64)
    index = some(index_n_heads=heads, index_head_dim=st.integers(512, 600), index_topk=sizes, q_lora_rank=sizes)
    return st.tuples(_deepseek(n), index).map(lambda parts: {**parts[0], **parts[1]})


def _nemotron_h(n: int) -> st.SearchStrategy[Config]:
    kinds = st.sampled_from(["linear_attention", "full_attention", "mlp", "moe"])
    mamba = some(
        mamba_num_heads=st.just(8),
        mamba_head_dim=st.integers(1, 64),
        n_groups=st.sampled_from([1, 2, 8]),
        ssm_state_size=st.integers(1, 64),
        conv_kernel=st.integers(2, 5),
        use_conv_bias=flags,
        use_bias=flags,
        time_step_min=st.sampled_from([0.001, 0.01]),
    )
    mixture = some(
        moe_intermediate_size=sizes,
        moe_shared_expert_intermediate_size=sizes,
        moe_latent_size=st.none() | sizes,
        routed_scaling_factor=factors,
        norm_topk_prob=flags,
    )
    others = some(layers_block_type=st.lists(kinds, min_size=n, max_size=n), attention_bias=flags)
    parts = st.tuples(mamba, mixture, experts("n_routed_experts"), others)
    return parts.map(lambda several: {name: value for part in several for name, value in part.items()})


def _windows(types: st.SearchStrategy[list[str]]) -> st.SearchStrategy[Config]:
    used = some(use_sliding_window=st.just(True), sliding_window=st.integers(1, 4096), layer_types=types)
    derived = some(
        use_sliding_window=st.just(True), sliding_window=st.integers(1, 99), max_window_layers=st.integers(0, 9)
    )
    return st.one_of(some(use_sliding_window=st.just(False), sliding_window=windows), used, derived)


def _gpt_oss(types: st.SearchStrategy[list[str]]) -> st.SearchStrategy[Config]:
    return some(
        layer_types=types,
        sliding_window=st.integers(1, 4096),
        attention_bias=flags,
        swiglu_limit=factors,
        swiglu_alpha=factors,
    )


def _qwen2_moe(n: int) -> st.SearchStrategy[Config]:
    return some(
        moe_intermediate_size=sizes,
        shared_expert_intermediate_size=sizes,
        norm_topk_prob=flags,
        qkv_bias=flags,
        decoder_sparse_step=st.just(1),
        mlp_only_layers=st.lists(st.integers(0, n - 1), unique=True, max_size=n - 1),
    )


def _gemma3(types: st.SearchStrategy[list[str]]) -> st.SearchStrategy[Config]:
    rope = thetas.map(lambda theta: {"rope_type": "default", "rope_theta": theta})
    return some(
        layer_types=types,
        rope_parameters=some(sliding_attention=rope, full_attention=rope),
        sliding_window=st.integers(1, 4096),
        attention_bias=flags,
        query_pre_attn_scalar=st.integers(1, 1024),
    )


@st.composite
def _gemma4(draw: Draw, base: Config, types: st.SearchStrategy[list[str]]) -> Config:
    from_keys, has_experts = draw(flags), draw(flags)
    heads = [count for count in range(1, 6) if base["num_attention_heads"] % count == 0]
    turned = {"rope_type": "proportional", "partial_rotary_factor": draw(st.sampled_from([0.25, 0.5]))}
    mixture = {**draw(experts()), "moe_intermediate_size": draw(sizes)} if has_experts else {}
    return {
        **{"top_k_experts" if name == "num_experts_per_tok" else name: value for name, value in mixture.items()},
        "enable_moe_block": has_experts,
        "layer_types": [*draw(types)[:-1], FULL],
        "sliding_window": draw(st.integers(1, 4096)),
        "attention_bias": draw(flags),
        "attention_k_eq_v": from_keys,
        "global_head_dim": 8 * draw(st.integers(1, 8)),
        "num_global_key_value_heads": draw(st.sampled_from(heads)) if from_keys else None,
        "hidden_size_per_layer_input": 0,
        "use_bidirectional_attention": draw(st.sampled_from([None, "vision"])),
        "final_logit_softcapping": draw(st.none() | factors),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": draw(thetas)},
            "full_attention": {**turned, "rope_theta": draw(thetas)},
        },
    }


def _shared() -> st.SearchStrategy[Config]:
    return some(moe_intermediate_size=sizes, shared_expert_intermediate_size=sizes)


@st.composite
def _delta(draw: Draw, n: int, others: st.SearchStrategy[Config]) -> Config:
    keys, ratio = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    types = [draw(st.sampled_from(["linear_attention", FULL])) for _ in range(n - 1)]
    drawn = {name: value for name, value in draw(others).items() if name != "qkv_bias"}
    return {
        **drawn,
        "layer_types": [*types, FULL],
        "head_dim": 8 * draw(st.integers(1, 4)),
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys * ratio,
        "linear_key_head_dim": draw(sizes),
        "linear_value_head_dim": draw(sizes),
        "linear_conv_kernel_dim": draw(st.integers(2, 8)),
        "attention_bias": draw(flags),
    }


@st.composite
def _deepseek_v2(draw: Draw, n: int) -> Config:
    drawn = {**draw(_deepseek(n)), "norm_topk_prob": False}
    del drawn["rope_interleave"]
    if draw(flags):
        return {**drawn, "topk_method": "group_limited_greedy"}
    return {**drawn, "topk_method": "greedy", "n_group": None, "topk_group": None}


@st.composite
def _glm4_moe(draw: Draw, n: int) -> Config:
    drawn = draw(_deepseek(n))
    shared = {
        name: drawn[name] for name in (*ROUTED, "routed_scaling_factor", "first_k_dense_replace", "attention_bias")
    }
    return {**shared, "moe_intermediate_size": draw(sizes), "use_qk_norm": draw(flags)}


def _qwen_moe(n: int) -> st.SearchStrategy[Config]:
    return some(
        moe_intermediate_size=sizes,
        norm_topk_prob=flags,
        attention_bias=flags,
        decoder_sparse_step=st.just(1),
        mlp_only_layers=st.lists(st.integers(0, n - 1), unique=True, max_size=n - 1),
    )


@st.composite
def _deepseek(draw: Draw, n: int) -> Config:
    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(2, 8))
    limited = draw(st.integers(1, groups))
    sized = ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "moe_intermediate_size", "qk_rope_head_dim")
    return {
        "n_group": groups,
        "topk_group": limited,
        "n_routed_experts": groups * per_group,
        "num_experts_per_tok": draw(st.integers(1, limited * per_group)),
        "n_shared_experts": draw(st.integers(1, 3)),
        "norm_topk_prob": draw(flags),
        "routed_scaling_factor": draw(factors),
        "first_k_dense_replace": draw(st.integers(0, n - 1)),
        "q_lora_rank": draw(st.none() | sizes),
        **{name: draw(sizes) for name in sized},
        "rope_interleave": draw(flags),
        "attention_bias": draw(flags),
        "head_dim": None,
        "num_key_value_heads": None,
    }


@st.composite
def _kimi_linear(draw: Draw, n: int) -> Config:
    drawn = draw(_deepseek(n))
    both = {name: value for name, value in drawn.items() if name not in ("first_k_dense_replace", "rope_interleave")}
    full = draw(st.lists(st.integers(1, n), unique=True, max_size=n))
    kinds = draw(st.lists(st.sampled_from(["dense", "sparse"]), min_size=n, max_size=n))
    linear = draw(some(num_heads=st.integers(1, 8), head_dim=sizes, short_conv_kernel_size=st.integers(2, 8)))
    linear |= {
        "kda_layers": [layer for layer in range(1, n + 1) if layer not in full],
        "full_attn_layers": sorted(full),
    }
    both["num_experts"] = both.pop("n_routed_experts")
    in_order = kinds == sorted(kinds)
    places = {"first_k_dense_replace": kinds.count("dense")} if in_order else {"mlp_layer_types": kinds}
    return {**both, **places, "linear_attn_config": linear}


@st.composite
def _smollm3(draw: Draw, types: st.SearchStrategy[list[str]], n: int) -> Config:
    size = draw(windows)
    return {
        "attention_bias": draw(flags),
        "no_rope_layers": draw(st.none() | st.lists(st.integers(0, 1), min_size=n, max_size=n)),
        "no_rope_layer_interval": draw(st.integers(1, 5)),
        "use_sliding_window": size is not None,
        "sliding_window": size,
        "layer_types": draw(st.none() if size is None else st.none() | types),
    }


@st.composite
def _llama4(draw: Draw, n: int) -> Config:
    bits = st.lists(st.integers(0, 1), min_size=n, max_size=n)
    chunk = draw(st.none() | st.integers(1, 8192))
    types = [FULL] if chunk is None else [FULL, CHUNKED]
    return {
        **draw(experts("num_local_experts")),
        "no_rope_layers": draw(bits),
        "moe_layers": [i for i, bit in enumerate(draw(bits)) if bit],
        "layer_types": draw(st.lists(st.sampled_from(types), min_size=n, max_size=n)),
        "attention_chunk_size": chunk,
        "intermediate_size_mlp": draw(sizes),
        "use_qk_norm": draw(flags),
        "attn_temperature_tuning": draw(flags),
        "floor_scale": draw(st.integers(1, 9999)),
        "attn_scale": draw(st.sampled_from([0.1, 0.25])),
        "attention_bias": draw(flags),
    }


def _compressed(n: int) -> st.SearchStrategy[Config]:
    """What DeepSeek-V4 has besides the common fields, of `n` layers."""
    kinds = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    plain = some(rope_type=st.just("default"), rope_theta=thetas)
    scaled = some(
        rope_type=st.just("yarn"),
        rope_theta=thetas,
        factor=factors,
        original_max_position_embeddings=st.integers(16, 1024),
        attention_factor=st.just(1.0),
    )
    layers = some(
        layer_types=st.lists(st.sampled_from(kinds), min_size=n, max_size=n),
        mlp_layer_types=st.lists(st.sampled_from(["hash_moe", "moe"]), min_size=n, max_size=n),
        compress_rates=some(
            compressed_sparse_attention=st.integers(2, 9), heavily_compressed_attention=st.integers(2, 256)
        ),
        rope_parameters=some(main=plain, compress=plain | scaled),
    )
    widths = some(
        q_lora_rank=sizes,
        o_lora_rank=sizes,
        sliding_window=st.integers(1, 4096),
        index_n_heads=st.integers(1, 64),
        index_head_dim=st.integers(2, 64),
        index_topk=sizes,
        hc_mult=st.integers(1, 8),
        hc_sinkhorn_iters=st.integers(1, 30),
        moe_intermediate_size=sizes,
        scoring_func=st.sampled_from(["sqrtsoftplus", "sigmoid", "softmax"]),
        routed_scaling_factor=factors,
        swiglu_limit=factors,
    )
    parts = st.tuples(layers, widths, experts("n_routed_experts"))
    return parts.map(lambda several: {name: value for part in several for name, value in part.items()})


def _fit_compressed(base: Config, own: Config) -> None:
    """Leave out what the config of DeepSeek-V4 does not take; its heads turn in the last part."""
    del base["intermediate_size"]
    heads, turned = base["num_attention_heads"], 2 / base["head_dim"]
    ropes_of = own["rope_parameters"]
    own["rope_parameters"] = {name: {**rope, "partial_rotary_factor": turned} for name, rope in ropes_of.items()}
    own |= {"num_key_value_heads": 1, "o_groups": heads, "partial_rotary_factor": turned}
