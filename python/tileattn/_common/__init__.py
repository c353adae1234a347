"""What every family of attention uses: checks, the call of an operator, the compiled library."""
