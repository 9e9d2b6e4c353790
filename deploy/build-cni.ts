// Builds the plugin as files of their own, in dist or the folder that is named: detour-cni.cjs for hosts with Node.js,
// detour-cni for those without.

import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build, type Plugin } from 'esbuild'
import type protobuf from 'protobufjs'
import { packageRoot, packageVersion } from '../src/control/package.ts'
import { schema } from '../src/control/schema.ts'

const root = fileURLToPath(packageRoot)
const dist = process.argv[2] ?? join(root, 'dist')
const bundle = join(dist, 'detour-cni.cjs')
const executable = join(dist, 'detour-cni')

/** The mark in Node's executable that tells it of an application inside (nodejs.org, "Single executable applications"). */
const FUSE = 'NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2'

/** What the plugin asks; the fields of Request and Reply of these names are the ones that it needs. */
const TOPICS = ['hello', 'attach', 'detach', 'check', 'ready', 'collect', 'failure']

/** The control protocol without what the plugin never asks: building the whole of it takes 10 ms of each start. */
function thinSchema(): object {
  const messages = (schema.lookup('detour.control') as protobuf.Namespace).nested
  const thin: Record<string, protobuf.IType> = {}
  const keep = (name: string, topics?: string[]) => {
    const { fields, oneofs, ...rest } = (messages![name] as protobuf.Type).toJSON()
    const wanted = Object.entries(fields).filter(([field]) => topics === undefined || topics.includes(field))
    const bodies = { body: { oneof: wanted.map(([field]) => field).filter(field => field !== 'id') } }
    thin[name] = { ...rest, oneofs: topics === undefined ? oneofs : bodies, fields: Object.fromEntries(wanted) }
    for (const [, { type }] of wanted) if (messages?.[type] !== undefined && thin[type] === undefined) keep(type)
  }
  keep('Request', ['id', ...TOPICS])
  keep('Reply', ['id', ...TOPICS])
  return { nested: { detour: { nested: { control: { ...schema.lookup('detour.control')!.toJSON(), nested: thin } } } } }
}

/** What the modules that read the package's files are replaced by. */
const EMBEDDED: Record<string, string> = {
  'src/control/schema.ts': `import protobuf from 'protobufjs/light.js'
export const schema = protobuf.Root.fromJSON(${JSON.stringify(thinSchema())})`,
  'src/control/package.ts': `export const packageVersion = () => ${JSON.stringify(packageVersion())}`,
}

const embed: Plugin = {
  name: 'embed',
  setup(build) {
    build.onLoad({ filter: /\.ts$/ }, ({ path }) => {
      const contents = EMBEDDED[path.slice(root.length)]
      return contents === undefined ? undefined : { contents, loader: 'js', resolveDir: root }
    })
  },
}

/** One CommonJS file with all that it needs: the only form that a single executable application can have. */
async function buildBundle(): Promise<void> {
  await build({
    entryPoints: [join(root, 'src/cli/cni-main.ts')],
    outfile: bundle,
    bundle: true,
    minify: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    plugins: [embed],
    legalComments: 'eof',
  })
  chmodSync(bundle, 0o755)
}

/** The Node.js that runs this, with the bundle inside. NB: made beside its place and moved there, since it may be running. */
function buildExecutable(): void {
  const scratch = mkdtempSync(join(dist, '.cni-'))
  try {
    const blob = join(scratch, 'blob')
    const config = join(scratch, 'config.json')
    const made = join(scratch, 'detour-cni')
    const main = join(scratch, 'main.cjs')
    writeFileSync(main, readFileSync(bundle, 'utf8').replace(/^#!.*/, ''))
    writeFileSync(
      config,
      JSON.stringify({ main, output: blob, disableExperimentalSEAWarning: true, useCodeCache: true }),
    )
    node('--experimental-sea-config', config)
    copyFileSync(process.execPath, made)
    chmodSync(made, 0o755)
    node(
      createRequire(import.meta.url).resolve('postject/dist/cli.js'),
      made,
      'NODE_SEA_BLOB',
      blob,
      '--sentinel-fuse',
      FUSE,
    )
    renameSync(made, executable)
  } finally {
    rmSync(scratch, { recursive: true })
  }
}

/** Runs Node.js; what it says is only told when it fails. */
function node(...args: string[]): void {
  execFileSync(process.execPath, args, { stdio: 'pipe' })
}

const megabytes = (path: string) => `${(statSync(path).size / 1e6).toFixed(1)} MB`

await buildBundle()
console.log(`${bundle} (${megabytes(bundle)}): for hosts with Node.js`)
buildExecutable()
console.log(`${executable} (${megabytes(executable)}): for hosts without, of Node.js ${process.version}`)
