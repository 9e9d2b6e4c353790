#!/usr/bin/env node
// The entry: a container runtime's plugin, which must start fast, or the program with its subcommands.

/** What package.json says under engines. */
const OLDEST = [20, 19]

const [major, minor] = process.versions.node.split('.').map(Number)
if (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1])) {
  process.stderr.write(`detour: Node.js ${OLDEST.join('.')} or later is needed; this is ${process.version}\n`)
  process.exit(1)
}

const argv = process.argv.slice(2)
const asPlugin = process.env.CNI_COMMAND !== undefined && (argv.length === 0 || argv.join(' ') === 'cni')

if (asPlugin) (await import('../cni/main.ts')).runPlugin()
else await (await import('./program.ts')).runProgram(argv)
