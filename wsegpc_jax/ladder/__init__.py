"""The ladder: what each stage of WSegPC adds, measured over several seeds."""
