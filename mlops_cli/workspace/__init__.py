"""The user's checkout: the project, Git, the state index, and the verbs that move bytes between it and a store."""
