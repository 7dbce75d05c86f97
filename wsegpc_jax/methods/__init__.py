"""Methods, one file each: state, pure train step, prediction."""
