# Each process holds a piece of parameters, gradients and optimizer state; name it last in _base_.
runner_type = "FlexibleRunner"
strategy = dict(
    type="dcnv4_mm.FSDPStrategy",
    model_wrapper=dict(
        type="MMFullyShardedDataParallel",
        auto_wrap_policy="dcnv4_mm.engine.fsdp.wrap_blocks",
        use_orig_params=True,
    ),
    # One file, as without FSDP.
    state_dict_cfg="full",
)
