// The error object that a CNI plugin prints (CNI specification 1.1.0, section 5, "Error"), and its codes.

/** 0 to 99 are the specification's, 100 and up are ours. */
export const CODE = {
  INCOMPATIBLE_VERSION: 1,
  UNSUPPORTED_FIELD: 2,
  BAD_ENVIRONMENT: 4,
  IO: 5,
  UNDECODABLE: 6,
  BAD_CONFIG: 7,
  TRY_AGAIN: 11,
  NOT_AVAILABLE: 50,
  LIMITED: 51,
  /** The daemon tried and failed, or the plugin has a bug. */
  FAILED: 100,
  /** What listens on the socket is not a daemon of this version. */
  NOT_OUR_DAEMON: 101,
  /** The daemon does not serve this user. */
  FORBIDDEN: 102,
  /** CHECK: the attachment is not as ADD left it. */
  NOT_AS_ADDED: 103,
} as const

/** A verb's failure: `message` is short, `details` names the thing, its value and what to do. */
export class CniError extends Error {
  readonly code: number
  readonly details: string

  constructor(code: number, message: string, details = '', options?: ErrorOptions) {
    super(message, options)
    this.name = 'CniError'
    this.code = code
    this.details = details
  }
}

/** The error object's text. */
export function renderError({ code, message, details }: CniError, cniVersion: string): string {
  return JSON.stringify({ cniVersion, code, msg: message, details })
}

/** A value as an error shows it: JSON, cut where it is long. */
export function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing'
  return text.length <= 100 ? text : `${text.slice(0, 100)}…`
}
