"""What connects this package's classes with the OpenMMLab libraries; imported by the registries."""
