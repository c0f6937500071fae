from vicinal.backends.gpu.kernels.sources import be_quick

be_quick()  # before any kernel is made
