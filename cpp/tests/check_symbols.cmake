# Fails if one of OBJECTS, separated by |, defines a symbol outside the namespace of its
# instruction set VARIANT.
string(REPLACE "|" ";" OBJECTS "${OBJECTS}")
execute_process(COMMAND ${NM} --demangle --defined-only --extern-only ${OBJECTS}
  OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "\n" ";" symbols "${symbols}")
set(shared "")
foreach(symbol IN LISTS symbols)
  if(symbol AND NOT symbol MATCHES "\\.o:$|tileattn::cpu::${VARIANT}::")
    list(APPEND shared "${symbol}")
  endif()
endforeach()
if(shared)
  list(JOIN shared "\n  " shared)
  message(FATAL_ERROR "${OBJECTS} share code with other files:\n  ${shared}")
endif()
