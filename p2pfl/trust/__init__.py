"""Who may take part in a federation: keys, the federation file, and changes of it that its members sign."""
