"""A training of the model in toy_training.py, whose folder must be on the path."""

custom_imports = dict(imports=["toy_training"])
model = dict(type="Toy")
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type="ToySet"),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=1e-4))
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1))
randomness = dict(seed=0)
visualizer = dict(type="Visualizer")
