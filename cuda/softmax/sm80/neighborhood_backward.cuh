// The backward on a grid: the kernels of backward.cuh with tiles and scores of grids.
#pragma once

#include "backward.cuh"
#include "softmax/grid_scores.cuh"
