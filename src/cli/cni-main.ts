#!/usr/bin/env node
// The entry of the self-contained plugin: a container runtime calls it without arguments, people with the name of a subcommand.

if (process.argv.length <= 2) import('../cni/main.ts').then(({ runPlugin }) => runPlugin())
else import('./cni.ts').then(({ runCni }) => runCni(process.argv.slice(2)))
