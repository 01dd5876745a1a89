# For tools that insist on node-gyp. CMakeLists.txt describes the build; this only starts it. Not in the npm package, and
# "gypfile": false in package.json: npm would otherwise run node-gyp at every install.
{
  "targets": [
    {
      "target_name": "molae",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["<(PRODUCT_DIR)/never-made-so-that-it-always-runs"],
          "action": ["node", "scripts/build-native.mjs"]
        }
      ]
    }
  ]
}
