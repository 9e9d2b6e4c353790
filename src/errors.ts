// Set-up errors. Thrown before packets flow, never by the path that carries them.

/** Stable error codes; scripts may match on them, so a code is never renamed. */
export type ErrorCode =
  | 'bad-file' // a file that cannot be understood; the message names file and offset
  | 'bad-config' // a configuration value; the message names key, value and what is allowed
  | 'usage' // wrong command line
  | 'system' // a system call failed; the message names call, object and errno
  | 'unsupported' // the kernel or platform lacks what was asked for
  | 'not-found' // a namespace, interface, daemon or file that is not there
  | 'gone' // who was asked hung up before the answer
  | 'permission' // root or a capability is missing

/** A set-up failure: `message` names the thing, its value and what to do about it. */
export class DetourError extends Error {
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'DetourError'
    this.code = code
  }
}

/** The process exit status for an error: 2 for wrong usage, 1 for all else. */
export function exitStatus(error: unknown): number {
  return error instanceof DetourError && error.code === 'usage' ? 2 : 1
}
