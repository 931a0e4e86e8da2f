"""Where every array lives: mesh, logical axis rules, placement."""
