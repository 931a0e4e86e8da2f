from tests.compilations import share

share()
