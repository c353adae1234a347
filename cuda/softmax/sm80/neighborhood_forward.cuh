// The forward on a grid: the kernels of forward.cuh with tiles and scores of grids.
#pragma once

#include "forward.cuh"
#include "softmax/grid_scores.cuh"
