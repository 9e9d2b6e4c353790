// Versions of the CNI specification, and which verb exists since when.

import { CniError, CODE, shown } from './error.ts'

/** Those that Detour speaks, ascending. */
export const VERSIONS = ['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0']

/** The newest of VERSIONS: an answer's when the question's is not known. */
export const NEWEST = VERSIONS[VERSIONS.length - 1]

/** Throws CniError 1 unless Detour speaks `version` and `verb` exists in it. */
export function checkVersion(version: string, verb: string, since: string): void {
  const at = VERSIONS.indexOf(version)
  if (at < 0) {
    const details = `cniVersion is ${shown(version)}; supported: ${VERSIONS.join(', ')}`
    throw new CniError(CODE.INCOMPATIBLE_VERSION, 'incompatible CNI version', details)
  }
  if (at < VERSIONS.indexOf(since)) {
    const details = `cniVersion is ${version}; ${verb} exists since ${since}`
    throw new CniError(CODE.INCOMPATIBLE_VERSION, `CNI version without ${verb}`, details)
  }
}
