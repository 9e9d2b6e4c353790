// Where the package lies, whether its sources run as they are or compiled into dist/.

import { readFileSync } from 'node:fs'

/** True when this very code was compiled into dist/. */
export const compiled = import.meta.url.endsWith('.js')

/** The folder of package.json. */
export const packageRoot = new URL(compiled ? '../../../' : '../../', import.meta.url)

/** The version in package.json. */
export function packageVersion(): string {
  return JSON.parse(readFileSync(new URL('package.json', packageRoot), 'utf8')).version
}
