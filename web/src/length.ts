/** The bound of a question. */

/** The longest question, in characters. */
const LONGEST_QUESTION = 32_768;

/** Says how much too long a text is; empty where it is not. */
export function tooLong(text: string): string {
  if (text.length <= LONGEST_QUESTION) return "";
  // The service counts characters, and a string in JavaScript pairs of bytes.
  const over = [...text.trim()].length - LONGEST_QUESTION;
  if (over <= 0) return "";
  return `The message is ${over.toLocaleString("en")} characters too long; it may have 32,768.`;
}
