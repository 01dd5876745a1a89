#pragma once

// A function compiled for several instruction sets, the best one chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(MOLAE_SANITIZED)
#if __GNUC__ >= 12
#define MOLAE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // which knows no levels
#define MOLAE_MULTIVERSION __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define MOLAE_MULTIVERSION
#endif
