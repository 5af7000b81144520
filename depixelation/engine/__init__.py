"""The machinery of training, predicting and measuring. It knows no exercise."""
