# MOLAE_NODE_API_INCLUDE: the headers of Node-API and node-addon-api, from the packages in node_modules: no download,
# whatever calls CMake.
find_program(MOLAE_NODE node)
if(MOLAE_NODE)
  foreach(expression "require('node-api-headers').include_dir" "require('node-addon-api').include_dir")
    execute_process(COMMAND ${MOLAE_NODE} -p "require('path').resolve(${expression})"
      WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
      OUTPUT_VARIABLE MOLAE_HEADERS OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE MOLAE_FAILED)
    if(NOT MOLAE_FAILED)
      list(APPEND MOLAE_NODE_API_INCLUDE ${MOLAE_HEADERS})
    endif()
  endforeach()
endif()
if(NOT MOLAE_NODE_API_INCLUDE)
  message(STATUS "molae: no node or no node_modules, building without the addon")
endif()
